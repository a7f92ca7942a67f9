package pluginhost

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"strings"

	goplugin "github.com/hashicorp/go-plugin"
)

// ControlKeys authenticate the host to a plugin that demands its certificate, also after a restart:
// any other process of the same user can reach the socket, but is refused.
type ControlKeys struct {
	Certificate []byte `json:"certificate"` // the host's, DER
	Key         []byte `json:"key"`         // its private key, PKCS #8; a secret
	Server      []byte `json:"server"`      // the plugin's certificate, DER
}

// certificateField is the place of the plugin's certificate in go-plugin's first line.
const certificateField = 5

// controlKeys returns the keys that go-plugin has created for a plugin that has just printed its
// first line. A plugin without a certificate serves without TLS: then it disables TLS in c and
// returns nil.
func controlKeys(c *goplugin.ClientConfig, firstLine string) (*ControlKeys, error) {
	fields := strings.Split(firstLine, "|")
	if len(fields) <= certificateField || fields[certificateField] == "" {
		c.TLSConfig = nil
		return nil, nil //nolint:nilnil // no keys
	}
	server, err := base64.RawStdEncoding.DecodeString(fields[certificateField])
	if err != nil {
		return nil, fmt.Errorf("certificate of the plugin: %w", err)
	}
	own := c.TLSConfig.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("key of the connection: %w", err)
	}
	return &ControlKeys{Certificate: own.Certificate[0], Key: key, Server: server}, nil
}

// Config returns the TLS configuration of a host with the keys; nil for nil.
func (k *ControlKeys) Config() (*tls.Config, error) {
	if k == nil {
		return nil, nil //nolint:nilnil // no TLS
	}
	key, err := x509.ParsePKCS8PrivateKey(k.Key)
	if err != nil {
		return nil, fmt.Errorf("key of the connection: %w", err)
	}
	server, err := x509.ParseCertificate(k.Server)
	if err != nil {
		return nil, fmt.Errorf("certificate of the plugin: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(server)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{k.Certificate}, PrivateKey: key}},
		RootCAs:      roots, ServerName: "localhost", MinVersion: tls.VersionTLS12,
	}, nil
}
