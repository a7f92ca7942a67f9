package config

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/rbee-project/rbee/core"
)

// maxCertificateTTL is the life of the CA: no certificate outlives it.
const maxCertificateTTL = 10 * 365 * 24 * time.Hour

// ListenAddress returns the IP address that the agent's ports listen on, or "localhost". If no
// address is configured, an agent listens on loopback while it is in no cluster, and on all
// addresses in one, where nothing is served without TLS and tokens.
func (c *Config) ListenAddress(inCluster bool) string {
	if inCluster && !c.Dev && c.origins["bind.address"].Source == SourceDefault {
		return "0.0.0.0"
	}
	return c.Bind.Address
}

// OpenWithoutTLS returns the complaint about an HTTP API that other machines could reach without
// TLS and tokens, or nothing if they cannot. Whether the agent is in a cluster is known only when
// it starts.
func (c *Config) OpenWithoutTLS(inCluster bool) hcl.Diagnostics {
	loopback, ok := isLoopback(c.Bind.Address)
	if !ok || loopback || c.Insecure || c.TLS.Given() || inCluster {
		return nil
	}
	return c.blame("bind.address", "Open without TLS", c.openWithoutTLS())
}

func (c *Config) openWithoutTLS() string {
	return fmt.Sprintf("%s can be reached from other machines, and this agent is in no cluster, so that it has no TLS and no access tokens: everybody on that network could use this machine. "+
		"Make a cluster of this machine with \"rbee cluster init\", or join one with \"rbee cluster join\"; or leave bind.address at 127.0.0.1 and come in through an SSH tunnel "+
		"(ssh -L 7833:127.0.0.1:7833 HOST); or set insecure = true if you trust everybody on that network.", c.Bind.Address)
}

// AdvertiseHost returns the IP address or host name at which the other machines of a cluster reach
// this one: bind.advertise; else bind.address if it is one address; else the address of the
// interface with the default route. Errors: Invalid if it finds none.
func (c *Config) AdvertiseHost(ctx context.Context) (string, error) {
	if c.Bind.Advertise != "" {
		return c.Bind.Advertise, nil
	}
	address := c.ListenAddress(true)
	if address == "localhost" {
		return "127.0.0.1", nil
	}
	if ip, err := netip.ParseAddr(address); err == nil && !ip.IsUnspecified() {
		return ip.Unmap().String(), nil
	}
	// Connecting a UDP socket sends nothing, but reveals which source address packets would have.
	// The target addresses are reserved for documentation.
	for _, target := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} {
		if ip, ok := sourceAddress(ctx, target); ok {
			return ip, nil
		}
	}
	if ip, r := likeliest(interfaceAddresses()); r != reachNobody {
		return ip.String(), nil
	}
	return "", core.Errorf(core.Invalid, "this machine has no address that others could reach it at").Hint(
		"Say it with --advertise HOST, or bind { advertise = … } in the configuration; 127.0.0.1 will do for a cluster on this machine alone.")
}

func sourceAddress(ctx context.Context, target string) (string, bool) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", target)
	if err != nil {
		return "", false
	}
	defer conn.Close()
	a, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok || !a.IP.IsGlobalUnicast() {
		return "", false
	}
	return a.AddrPort().Addr().Unmap().String(), true
}

func checkAddress(c *Config) string {
	loopback, ok := isLoopback(c.Bind.Address)
	switch {
	case !ok:
		return fmt.Sprintf("%q is not an IP address. Write an address of this machine, such as \"127.0.0.1\", or \"localhost\".", c.Bind.Address)
	case c.Dev && !loopback && !c.Insecure: // is never in a cluster
		return c.openWithoutTLS()
	}
	return ""
}

func isLoopback(address string) (loopback, ok bool) {
	if address == "localhost" {
		return true, true
	}
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return false, false
	}
	return ip.Unmap().IsLoopback(), true
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\.?$`)

func isHostName(s string) bool { return len(s) <= 253 && hostName.MatchString(s) }

func checkAdvertise(c *Config) string {
	v := c.Bind.Advertise
	if v == "" {
		return ""
	}
	if ip, err := netip.ParseAddr(v); err == nil {
		if ip.IsUnspecified() {
			return fmt.Sprintf("%s is every machine's address: others cannot reach this one there. Write one address of this machine, or its host name.", v)
		}
		return ""
	}
	if host, _, err := net.SplitHostPort(v); err == nil {
		return fmt.Sprintf("%q has a port: write %q alone. The ports are bind.rpc_port and bind.gossip_port.", v, host)
	}
	if !isHostName(v) || numericHost(v) {
		return fmt.Sprintf("%q is neither an IP address nor a host name. Write what the other machines reach this one at, such as \"10.0.0.1\".", v)
	}
	return ""
}

// numericHost reports whether a name looks like a mistyped IPv4 address: the last label of a host
// name has a letter.
func numericHost(v string) bool {
	v = strings.TrimSuffix(v, ".")
	_, err := strconv.ParseUint(v[strings.LastIndex(v, ".")+1:], 10, 64)
	return err == nil
}

func checkRetryJoin(c *Config) string {
	for _, v := range c.Gossip.RetryJoin {
		host := v
		if h, port, err := net.SplitHostPort(v); err == nil {
			if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
				return fmt.Sprintf("%q has no usable port: it must be between 1 and 65535.", v)
			}
			host = h
		}
		if _, err := netip.ParseAddr(host); err != nil && (!isHostName(host) || numericHost(host)) {
			return fmt.Sprintf("%q is neither an IP address nor a host name, with or without a port. Write it as \"10.0.0.1\", \"queens.example.org\" or \"10.0.0.1:%d\".", v, DefaultGossipPort)
		}
	}
	return ""
}

func checkAllowOrigins(c *Config) string {
	for _, v := range c.HTTP.AllowOrigins {
		if v == "*" {
			continue
		}
		u, err := url.Parse(v)
		if err != nil || u.Scheme == "" || u.Host == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
			return fmt.Sprintf("%q is not an origin. Write it as \"https://app.example.org\" or \"http://localhost:3000\", without a path, or \"*\" for all.", v)
		}
	}
	return ""
}

func checkAllowHosts(c *Config) string {
	for _, v := range c.HTTP.AllowHosts {
		if _, err := netip.ParseAddr(v); err != nil && !isHostName(v) {
			return fmt.Sprintf("%q is neither a host name nor an IP address. Write it without scheme and port, as \"llm.example.org\".", v)
		}
	}
	return ""
}

func checkBootstrapExpect(c *Config) string {
	n := c.Queen.BootstrapExpect
	switch {
	case n < 1 || n > 9:
		return fmt.Sprintf("%d is out of range: it is the number of queens that the cluster begins with, 1, 3, 5, 7 or 9.", n)
	case n%2 == 0:
		return fmt.Sprintf("%d is even: it needs a majority of %d, so it survives the loss of no more queens than %d would. Choose 1, 3, 5, 7 or 9.", n, n/2+1, n-1)
	}
	return ""
}

func checkName(c *Config) string {
	switch {
	case c.Name == "":
		return ""
	case c.Name == core.LocalHive:
		return fmt.Sprintf("%q always means the hive of the machine that is asked. Choose another name.", core.LocalHive)
	case !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`).MatchString(c.Name):
		return fmt.Sprintf("%q is no name for a machine: use up to 63 letters, digits, dots, dashes and underscores, and begin with a letter or a digit.", c.Name)
	}
	return ""
}
