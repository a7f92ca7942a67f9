package pki

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/disk"
)

// InitOptions describe the cluster to start.
type InitOptions struct {
	Name         string // display name of the cluster; may be empty
	NodeID       string // 8 hex digits
	NodeName     string // name of this node
	RPCAddress   string // host:port at which others reach this node's RPC port
	AddressFound bool   // as in Material
	// Hosts are further DNS names and addresses for which the certificate is to be valid.
	Hosts          []string
	Roles          []core.Role   // roles of this node, which must be a queen
	CertificateTTL time.Duration // 0: DefaultTTL
	// Token is the first operator token: its ID, hash, scopes and so on. core/token creates it.
	Token core.Token
	Now   time.Time
}

// InitResult describes a newly started cluster.
type InitResult struct {
	Identity    *Identity
	Fingerprint string // fingerprint of the CA's certificate
}

// Seed is what the first queen writes to the registry of a new cluster. Formatting it reveals
// nothing.
type Seed struct {
	CAPEM            []byte
	SealedCAKey      []byte
	SealedGossipKeys []byte
	Token            core.Token // the first operator token
}

// Format reveals nothing of the seed.
func (Seed) Format(f fmt.State, _ rune) { fmt.Fprint(f, "seed of a cluster") }

// seedFile is the content of init.json.
type seedFile struct {
	CAPEM            []byte     `json:"ca_certificates"`
	SealedCAKey      []byte     `json:"sealed_ca_key"`
	SealedGossipKeys []byte     `json:"sealed_gossip_keys"`
	Token            core.Token `json:"token"`
	TokenHash        []byte     `json:"token_hash"` // core.Token never shows its hash
}

func (s *Seed) file() seedFile {
	return seedFile{CAPEM: s.CAPEM, SealedCAKey: s.SealedCAKey, SealedGossipKeys: s.SealedGossipKeys, Token: s.Token, TokenHash: s.Token.SecretHash}
}

// Init starts a cluster: it creates the CA, the first node's certificate, the seal key and the
// first gossip key, and writes them into the data folder atomically. The future contents of the
// registry wait there, sealed, as the Seed. The CA's key is never stored unencrypted. Errors:
// Conflict if the node is already in a cluster, Invalid.
func Init(dataDir string, o InitOptions) (InitResult, error) {
	const op = "start a cluster"
	if _, err := os.Lstat(dataDir + "/" + Folder + "/" + fileInfo); err == nil {
		return InitResult{}, core.Errorf(core.Conflict, "%s: this node is in a cluster already", op).Hint(
			"\"rbee agent\" starts it. To give up that cluster, run \"rbee cluster leave\" first.")
	}
	if o.Token.Kind != core.TokenAPI || o.Token.ID == "" || len(o.Token.SecretHash) == 0 {
		return InitResult{}, core.Errorf(core.Invalid, "%s: there is no operator token", op).Hint("A cluster without one could never be changed.")
	}
	n := Node{Cluster: fmt.Sprintf("%x", random(8)), ID: o.NodeID, Name: o.NodeName, Roles: o.Roles}
	if !n.Has(core.RoleQueen) {
		return InitResult{}, core.Errorf(core.Invalid, "%s: the first node is not a queen", op).Hint("Start the cluster on a machine with queen { enabled = true }.")
	}
	hosts, err := withHostOf(o.RPCAddress, o.Hosts)
	if err != nil {
		return InitResult{}, err
	}
	ca, err := NewCA(n.Cluster, o.Name, o.Now)
	if err != nil {
		return InitResult{}, err
	}
	key, err := NewKey()
	if err != nil {
		return InitResult{}, err
	}
	csr, err := NewRequest(key, n.ID)
	if err != nil {
		return InitResult{}, err
	}
	certPEM, _, err := ca.Sign(csr, n, hosts, o.CertificateTTL, o.Now)
	if err != nil {
		return InitResult{}, err
	}
	sealKey, gossip := NewSealKey(), Secrets{NewGossipKey()}
	seed := &Seed{CAPEM: ca.CertPEM(), Token: o.Token}
	if seed.SealedCAKey, err = Seal(sealKey, ca.KeyPEM(), caKeyLabel(n.Cluster)); err != nil {
		return InitResult{}, err
	}
	if seed.SealedGossipKeys, err = sealGossipKeys(sealKey, n.Cluster, gossip); err != nil {
		return InitResult{}, err
	}
	id, err := Create(dataDir, Material{
		ClusterName: o.Name, Name: o.NodeName, RPCAddress: o.RPCAddress, AddressFound: o.AddressFound,
		CAPEM: ca.CertPEM(), NodePEM: certPEM, Key: key, SealKey: sealKey, GossipKeys: gossip, Seed: seed,
	})
	return InitResult{Identity: id, Fingerprint: ca.Fingerprint()}, err
}

// Seed returns what to write to the registry of a new cluster, or nil if that has been done or
// never was this node's task. Errors: Integrity.
func (i *Identity) Seed() (*Seed, error) {
	b, err := i.get(fileSeed)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // nothing to do is not an error
	}
	if err != nil {
		return nil, err
	}
	if err := disk.CheckSeal(b); err != nil {
		return nil, damaged(fileSeed + ": " + err.Error())
	}
	var f seedFile
	if err := json.Unmarshal(b, &f); err != nil || len(f.SealedCAKey) == 0 || len(f.SealedGossipKeys) == 0 || len(f.TokenHash) == 0 {
		return nil, damaged("init.json is not what it should be")
	}
	f.Token.SecretHash = f.TokenHash
	return &Seed{CAPEM: f.CAPEM, SealedCAKey: f.SealedCAKey, SealedGossipKeys: f.SealedGossipKeys, Token: f.Token}, nil
}

// DropSeed deletes the seed once the registry has it. It may be called again.
func (i *Identity) DropSeed() error {
	i.write.Lock()
	defer i.write.Unlock()
	if i.dir == "" {
		return nil
	}
	root, err := os.OpenRoot(i.dir)
	if err != nil {
		return core.Wrap(err, core.Internal, "forget the seed")
	}
	defer root.Close()
	if err := root.Remove(fileSeed); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return core.Wrap(err, core.Internal, "forget the seed")
	}
	return syncDir(i.dir)
}
