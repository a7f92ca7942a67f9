package pki

import (
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

// A recovery key is the seal key of a cluster in a form for people to keep: a prefix, the cluster's
// ID, and the key with the first bytes of a checksum over both, in base64.
const (
	recoveryPrefix   = "rbee-recovery-"
	recoverySumBytes = 4
)

// RecoveryKey returns the recovery key of the node's cluster. Together with a snapshot it gives
// access to the cluster's CA. Errors: Unsupported without a seal key.
func (i *Identity) RecoveryKey() (Secret, error) {
	key := i.SealKey()
	if len(key) == 0 {
		return nil, noSealKey()
	}
	return formatRecoveryKey(i.Cluster(), key), nil
}

func formatRecoveryKey(cluster string, key []byte) Secret {
	data := append(append([]byte{}, key...), recoverySum(cluster, key)...)
	return Secret(recoveryPrefix + cluster + "-" + base64.RawURLEncoding.EncodeToString(data))
}

// ParseRecoveryKey returns the cluster and the seal key of a recovery key, which may have space
// around it. Errors: Invalid.
func ParseRecoveryKey(text string) (cluster string, sealKey Secret, err error) {
	invalid := core.Errorf(core.Invalid, "read the recovery key: it is not a recovery key, or not all of it").Hint(
		"It is the line that \"rbee operator recovery-key\" printed on a queen's machine; it begins with %s.", recoveryPrefix)
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), recoveryPrefix)
	if !ok {
		return "", nil, invalid
	}
	cluster, encoded, ok := strings.Cut(rest, "-")
	if !ok || !isClusterID(cluster) {
		return "", nil, invalid
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || len(data) != sealKeyBytes+recoverySumBytes {
		return "", nil, invalid
	}
	key := data[:sealKeyBytes]
	if string(recoverySum(cluster, key)) != string(data[sealKeyBytes:]) {
		return "", nil, invalid
	}
	return cluster, key, nil
}

func recoverySum(cluster string, key []byte) []byte {
	h := sha256.Sum256(append([]byte(recoveryPrefix+cluster+"-"), key...))
	return h[:recoverySumBytes]
}

// RecoverOptions describe the identity to make from a registry.
type RecoverOptions struct {
	Cluster        core.Cluster // the registry's cluster
	SealKey        Secret       // from ParseRecoveryKey
	NodeID         string       // 8 hex digits, new to the cluster
	NodeName       string
	RPCAddress     string // host:port at which others reach this node's RPC port
	AddressFound   bool   // as in Material
	Hosts          []string
	Roles          []core.Role
	CertificateTTL time.Duration // 0: DefaultTTL
	Now            time.Time
}

// Recover creates the identity of a new queen for a cluster that has lost all queens, signed by the
// CA in its registry, and writes it to the data folder. Errors: Integrity if the seal key does not
// open the registry's keys, Unsupported if the registry has no CA, Conflict, Invalid.
func Recover(dataDir string, o RecoverOptions) (*Identity, error) {
	c := o.Cluster
	if len(c.SealedCAKey) == 0 {
		return nil, core.Errorf(core.Unsupported, "recover the cluster: its certificates are made elsewhere").Hint(
			"Make this machine's certificate with \"rbee tls cert create\", name it in the configuration (tls { … }), and restore then.")
	}
	caKey, err := Open(o.SealKey, c.SealedCAKey, caKeyLabel(c.ID))
	if err != nil {
		return nil, err
	}
	gossip, err := openGossipKeys(o.SealKey, c.ID, c.SealedGossipKeys)
	if err != nil {
		return nil, err
	}
	ca, err := ParseCA(c.CACertificates, caKey)
	if err != nil {
		return nil, err
	}
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	csr, err := NewRequest(key, o.NodeID)
	if err != nil {
		return nil, err
	}
	hosts, err := withHostOf(o.RPCAddress, o.Hosts)
	if err != nil {
		return nil, err
	}
	n := Node{Cluster: c.ID, ID: o.NodeID, Name: o.NodeName, Roles: o.Roles}
	certPEM, _, err := ca.Sign(csr, n, hosts, o.CertificateTTL, o.Now)
	if err != nil {
		return nil, err
	}
	return Create(dataDir, Material{
		ClusterName: c.Name, Name: o.NodeName, RPCAddress: o.RPCAddress, AddressFound: o.AddressFound,
		CAPEM: c.CACertificates, NodePEM: certPEM, Key: key, SealKey: o.SealKey, GossipKeys: gossip,
	})
}
