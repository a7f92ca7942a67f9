package pki

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/disk"
)

// Folder is the folder of an identity within the data folder. It has mode 0700, its files 0600.
const Folder = "cluster"

const (
	fileInfo   = "identity.json"
	fileCA     = "ca.pem"
	fileNode   = "node.pem"
	fileKey    = "node.key"
	fileSeal   = "seal.key"
	fileGossip = "gossip.key"
	fileSeed   = "init.json"

	maxFileBytes = 1 << 20
)

// Files names the files of an identity outside the data folder, as in the tls block of a
// configuration.
type Files struct {
	CA, Certificate, Key string // paths; PEM
	Name                 string // node name; empty: the name in the certificate
	RPCAddress           string // host:port
}

// Load reads the identity in a data folder. Errors: NotFound if the node is not in a cluster,
// Forbidden if other users could read its keys, Integrity if parts are damaged, missing or do not
// belong together.
func Load(dataDir string) (*Identity, error) {
	dir := filepath.Join(dataDir, Folder)
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notInCluster()
	}
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "open the identity")
	}
	defer root.Close()
	b, err := readFile(root, fileInfo)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notInCluster()
	}
	if err != nil {
		return nil, err
	}
	if err := disk.CheckSeal(b); err != nil {
		return nil, damaged(filepath.Join(dir, fileInfo) + ": " + err.Error())
	}
	var in info
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, damaged("identity.json is not what it should be")
	}
	if !isClusterID(in.Cluster) || !IsNodeID(in.Node) {
		return nil, damaged("identity.json names no node and cluster")
	}
	var parts [4][]byte
	for n, name := range []string{fileCA, fileNode, fileKey, fileSeal} {
		parts[n], err = readFile(root, name)
		switch {
		case errors.Is(err, fs.ErrNotExist) && name == fileSeal: // a hive has none
		case errors.Is(err, fs.ErrNotExist):
			return nil, damaged(name + " is missing")
		case err != nil:
			return nil, err
		}
	}
	s, err := build(in, parts[0], parts[1], parts[2], parts[3])
	if err != nil {
		return nil, fmt.Errorf("load the identity in %s: %w", dir, err)
	}
	i := &Identity{dir: dir}
	i.state.Store(s)
	return i, nil
}

// LoadFiles reads an identity from the files that the configuration names. It has no seal key, and
// rbee never writes it; Reload reads it again. Errors: NotFound for a missing file, Forbidden if
// any user could read the key, Integrity.
func LoadFiles(f Files) (*Identity, error) {
	var parts [3][]byte
	for n, path := range []string{f.CA, f.Certificate, f.Key} {
		dir, name := filepath.Split(path)
		root, err := os.OpenRoot(filepath.Clean(dir))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, noFile(path)
		}
		if err != nil {
			return nil, core.Wrap(err, core.Internal, "open "+path)
		}
		secret := fs.FileMode(0)
		if n == 2 {
			secret = 0o007
		}
		parts[n], err = readMode(root, name, secret)
		root.Close()
		if errors.Is(err, fs.ErrNotExist) {
			return nil, noFile(path)
		}
		if err != nil {
			return nil, err
		}
	}
	s, err := build(info{Name: f.Name, RPCAddress: f.RPCAddress}, parts[0], parts[1], parts[2], nil)
	if err != nil {
		return nil, err
	}
	i := &Identity{}
	i.state.Store(s)
	return i, nil
}

// Reload rereads the files of LoadFiles and uses them if they are valid and belong to the same
// node. Errors: as LoadFiles, Conflict for another node.
func (i *Identity) Reload(f Files) error {
	i.write.Lock()
	defer i.write.Unlock()
	fresh, err := LoadFiles(f)
	if err != nil {
		return err
	}
	s, old := fresh.state.Load(), i.state.Load()
	if s.node.ID != old.node.ID || s.node.Cluster != old.node.Cluster {
		return otherNode()
	}
	i.state.Store(s)
	return nil
}

// Create writes a new identity into a data folder atomically and returns it. Errors: Conflict if
// the folder already holds one, Integrity if the parts do not belong together, Invalid for a seal
// key on a node that is not a queen.
func Create(dataDir string, m Material) (*Identity, error) {
	s, err := build(info{ClusterName: m.ClusterName, Name: m.Name, RPCAddress: m.RPCAddress, AddressFound: m.AddressFound}, slices.Clone(m.CAPEM), slices.Clone(m.NodePEM), slices.Clone(m.Key), slices.Clone(m.SealKey))
	if err != nil {
		return nil, err
	}
	if len(m.SealKey) > 0 && !s.node.Has(core.RoleQueen) {
		return nil, core.Errorf(core.Invalid, "write the identity: a hive must not have the seal key").Hint("Join it as a queen.")
	}
	files := map[string][]byte{fileCA: s.caPEM, fileNode: s.nodePEM, fileKey: s.key}
	if files[fileInfo], err = encodeJSON(s.info); err != nil {
		return nil, err
	}
	if len(s.sealKey) > 0 {
		files[fileSeal] = s.sealKey
	}
	if len(m.GossipKeys) > 0 {
		if files[fileGossip], err = encodeGossipKeys(m.GossipKeys); err != nil {
			return nil, err
		}
	}
	if m.Seed != nil {
		if files[fileSeed], err = encodeJSON(m.Seed.file()); err != nil {
			return nil, err
		}
	}
	dir := filepath.Join(dataDir, Folder)
	if err := writeFolder(dataDir, dir, files); err != nil {
		return nil, err
	}
	i := &Identity{dir: dir}
	i.state.Store(s)
	return i, nil
}

// Replace switches to a renewed certificate and the current CA certificates, on disk and in memory.
// It does not touch open connections and running handshakes. The key stays. Errors: Conflict for a
// certificate of another node, Integrity if it does not fit this node's key or none of the CAs
// signed it, Unsupported if the files belong to the configuration.
func (i *Identity) Replace(certPEM, caPEM []byte) error {
	i.write.Lock()
	defer i.write.Unlock()
	if i.dir == "" {
		return core.Errorf(core.Unsupported, "renew the certificate: its files are named by the configuration").Hint("Make a new one with \"rbee tls cert create\" in their place.")
	}
	old := i.state.Load()
	in := old.info
	in.Cluster, in.Node = "", "" // distinguish another node from damage
	in.AddressNew = false        // the request informed the queens
	s, err := build(in, slices.Clone(caPEM), slices.Clone(certPEM), old.key, old.sealKey)
	if err != nil {
		return err
	}
	if s.node.ID != old.node.ID || s.node.Cluster != old.node.Cluster {
		return otherNode()
	}
	// A certificate must never be on disk without its CA: write all CAs first, then the
	// certificate, then only the remaining CAs.
	both, err := union(s.caPEM, old.caPEM)
	if err != nil {
		return err
	}
	steps := []struct {
		name string
		data []byte
	}{{fileCA, both}, {fileNode, s.nodePEM}, {fileCA, s.caPEM}}
	for _, step := range steps {
		if err := i.put(step.name, step.data); err != nil {
			return err
		}
	}
	if !slices.Equal(s.info.Roles, old.info.Roles) || old.info.AddressNew {
		if err := i.putInfo(s.info); err != nil {
			return err
		}
	}
	i.state.Store(s)
	return nil
}

// SetRPCAddress stores a new address, host:port, at which others reach the node's RPC port.
func (i *Identity) SetRPCAddress(address string) error {
	i.write.Lock()
	defer i.write.Unlock()
	s := *i.state.Load()
	if s.info.RPCAddress == address {
		return nil
	}
	s.info.RPCAddress, s.info.AddressNew = address, true
	if i.dir != "" {
		if err := i.putInfo(s.info); err != nil {
			return err
		}
	}
	i.state.Store(&s)
	return nil
}

// GossipKeys returns the stored gossip keys: with them a node finds the others before it receives
// newer ones. Errors: NotFound if there are none, Integrity.
func (i *Identity) GossipKeys() (Secrets, error) {
	b, err := i.get(fileGossip)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, core.Errorf(core.NotFound, "read the gossip keys: the node has none yet").Hint("It gets them from the first queen that it reaches.")
	}
	if err != nil {
		return nil, err
	}
	return decodeGossipKeys(b)
}

// SetGossipKeys stores the gossip keys, the one in use first. Errors: Invalid, Unsupported if the
// files belong to the configuration.
func (i *Identity) SetGossipKeys(keys Secrets) error {
	b, err := encodeGossipKeys(keys)
	if err != nil {
		return err
	}
	i.write.Lock()
	defer i.write.Unlock()
	return i.put(fileGossip, b)
}

// Remove deletes the identity in a data folder: the node is then not in a cluster. It does nothing
// if there is no identity.
func Remove(dataDir string) error {
	dir := filepath.Join(dataDir, Folder)
	gone, err := os.MkdirTemp(dataDir, "."+Folder+"-*")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return core.Wrap(err, core.Internal, "remove the identity")
	}
	defer os.RemoveAll(gone)
	if err := os.Rename(dir, filepath.Join(gone, Folder)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return core.Wrap(err, core.Internal, "remove the identity")
	}
	return syncDir(dataDir)
}

func (i *Identity) putInfo(in info) error {
	b, err := encodeJSON(in)
	if err != nil {
		return err
	}
	return i.put(fileInfo, b)
}

// put replaces one file atomically. The caller holds i.write.
func (i *Identity) put(name string, data []byte) error {
	if i.dir == "" {
		return core.Errorf(core.Unsupported, "%s: the identity's files are named by the configuration", "write "+name).Hint("Join the node with a token to have its identity kept for it.")
	}
	root, err := os.OpenRoot(i.dir)
	if err != nil {
		return core.Wrap(err, core.Internal, "write "+name)
	}
	defer root.Close()
	tmp := "." + name + ".new"
	_ = root.Remove(tmp) // left by a crash
	if err := createFile(root, tmp, data); err != nil {
		return err
	}
	if err := root.Rename(tmp, name); err != nil {
		return core.Wrap(err, core.Internal, "write "+name)
	}
	return syncDir(i.dir)
}

func (i *Identity) get(name string) ([]byte, error) {
	if i.dir == "" {
		return nil, fs.ErrNotExist
	}
	root, err := os.OpenRoot(i.dir)
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "read "+name)
	}
	defer root.Close()
	return readFile(root, name)
}

// writeFolder writes a folder of files atomically.
func writeFolder(dataDir, dir string, files map[string][]byte) error {
	const op = "write the identity"
	_, missing := os.Stat(dataDir)
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return core.WithHint(core.Wrap(err, core.Internal, op), "Choose another folder with -data-dir or data_dir = ….")
	}
	// A folder whose entry is not on disk loses everything in it. This user may not be able to open
	// the parent folder, unless this call has just created it.
	if err := syncDir(filepath.Dir(filepath.Clean(dataDir))); err != nil && missing != nil {
		return err
	}
	// An empty folder may be left over, and a rename replaces nothing that exists. os.Remove keeps
	// a folder that is not empty.
	_ = os.Remove(dir)
	tmp, err := os.MkdirTemp(dataDir, "."+Folder+"-*") // mode 0700
	if err != nil {
		return core.Wrap(err, core.Internal, op)
	}
	defer os.RemoveAll(tmp)
	root, err := os.OpenRoot(tmp)
	if err != nil {
		return core.Wrap(err, core.Internal, op)
	}
	defer root.Close()
	for name, data := range files {
		if err := createFile(root, name, data); err != nil {
			return err
		}
	}
	if err := syncDir(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		if _, statErr := os.Lstat(dir); statErr == nil {
			return core.Errorf(core.Conflict, "%s: %s is there already: this node is in a cluster", op, dir).Hint(
				"Use it as it is; or leave that cluster first with \"rbee cluster leave\".")
		}
		return core.Wrap(err, core.Internal, op)
	}
	return syncDir(dataDir)
}

func createFile(root *os.Root, name string, data []byte) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return core.Wrap(err, core.Internal, "write "+name)
	}
	_, err = f.Write(data)
	return core.Wrap(errors.Join(err, f.Sync(), f.Close()), core.Internal, "write "+name)
}

func readFile(root *os.Root, name string) ([]byte, error) { return readMode(root, name, 0o077) }

// readMode reads a file and refuses one with any of the forbidden permissions.
func readMode(root *os.Root, name string, forbidden fs.FileMode) ([]byte, error) {
	f, err := root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, core.WithHint(core.Wrap(err, core.Internal, "open "+name), "The file must belong to the user who runs the agent.")
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "read "+name)
	}
	if !st.Mode().IsRegular() {
		return nil, damaged(name + " is not a file")
	}
	if st.Mode().Perm()&forbidden != 0 {
		return nil, core.Errorf(core.Forbidden, "other users may read %s", filepath.Join(root.Name(), name)).Hint("chmod 600 %s", filepath.Join(root.Name(), name))
	}
	if st.Size() > maxFileBytes {
		return nil, damaged(name + " is too large")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes)) // the file may grow meanwhile
	return b, core.Wrap(err, core.Internal, "read "+name)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return core.Wrap(err, core.Internal, "write to disk")
	}
	defer d.Close()
	return core.Wrap(d.Sync(), core.Internal, "write to disk")
}

func encodeJSON(v any) ([]byte, error) {
	b, err := disk.Seal(v)
	return b, core.Wrap(err, core.Internal, "write the identity")
}

// union returns all certificates of both bundles, those of the first bundle first.
func union(a, b []byte) ([]byte, error) {
	seen, out := map[string]bool{}, []byte{}
	for _, bundle := range [][]byte{a, b} {
		certs, err := parseCertificates(bundle)
		if err != nil {
			return nil, err
		}
		for _, c := range certs {
			if !seen[string(c.Raw)] {
				seen[string(c.Raw)] = true
				out = append(out, encodePEM(blockCertificate, c.Raw)...)
			}
		}
	}
	return out, nil
}

func notInCluster() error {
	return core.Errorf(core.NotFound, "this node is in no cluster").Hint("Start one with \"rbee cluster init\", or join one with \"rbee cluster join TOKEN@host\".")
}

func noFile(path string) error {
	return core.Errorf(core.NotFound, "there is no file %s", path).Hint("Correct the path in the configuration, or make the file with \"rbee tls cert create\".")
}

func otherNode() error {
	return core.Errorf(core.Conflict, "renew the certificate: it is for another node").Hint("Use a certificate of this node, or join this node again.")
}
