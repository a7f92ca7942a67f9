package node

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/logstore"
)

const (
	idFile    = "server-id"
	peersFile = "peers.json"
	usedFile  = "peers.json.used"
)

// A raft id is the node's id and eight random hex digits, new for each new state: votes and
// acknowledgements that were lost with the old state belong to another id. Older state has only the
// node's id.
var raftID = regexp.MustCompile(`^(.+)\.[0-9a-f]{8}$`)

// OfRaftID returns the node id within a raft id.
func OfRaftID(id string) string {
	if m := raftID.FindStringSubmatch(id); m != nil {
		return m[1]
	}
	return id
}

func newRaftID(node string) string {
	b := make([]byte, 4)
	_, _ = rand.Read(b) // it never fails
	return node + "." + hex.EncodeToString(b)
}

// identify determines this node's raft id, and whether it has state.
func (n *Node) identify(stable raft.StableStore, logs raft.LogStore, snaps raft.SnapshotStore) (exists bool, err error) {
	exists, err = raft.HasExistingState(logs, stable, raft.NewDiscardSnapshotStore())
	if err != nil {
		return false, core.Wrap(err, core.Unavailable, "open raft node")
	}
	list, err := snaps.List()
	if err != nil {
		return false, core.Wrap(err, core.Unavailable, "list raft snapshots")
	}
	if !exists && len(list) > 0 {
		// Continuing from here would undo later acknowledgements, and raft would discard newer
		// snapshots of a lower term.
		return false, core.Errorf(core.Integrity, "open raft node: there are snapshots in %s, but the log is missing", n.opts.Dir).Hint(moveAway)
	}
	if !exists {
		n.id = newRaftID(n.opts.ID)
		return false, n.saveID()
	}
	if n.id, err = n.loadID(); err != nil {
		return true, err
	}
	if OfRaftID(n.id) != n.opts.ID {
		return true, n.notMine(n.id)
	}
	return true, nil
}

const moveAway = logstore.Lost

func (n *Node) notMine(owner string) error {
	return core.Errorf(core.Conflict, "open raft node: the raft folder %s belongs to queen %s, this is %s", n.opts.Dir, owner, n.opts.ID).Hint(
		"Use the data_dir that belongs to this queen. Or go on without that folder. " + moveAway)
}

func (n *Node) loadID() (string, error) {
	if n.opts.Dir == "" {
		return n.memory.id, nil
	}
	b, err := os.ReadFile(filepath.Join(n.opts.Dir, idFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return n.opts.ID, nil
	case err != nil:
		return "", core.Wrap(err, core.Unavailable, "read raft id")
	}
	id := strings.TrimSpace(string(b))
	if !raftID.MatchString(id) {
		return "", core.Errorf(core.Integrity, "read raft id: %s does not hold a raft id", filepath.Join(n.opts.Dir, idFile)).Hint(moveAway)
	}
	return id, nil
}

func (n *Node) saveID() error {
	if n.opts.Dir == "" {
		n.memory.id = n.id
		return nil
	}
	root, err := os.OpenRoot(n.opts.Dir)
	if err != nil {
		return core.Wrap(err, core.Unavailable, "write raft id")
	}
	defer root.Close()
	return core.Wrap(errors.Join(writeFile(root, idFile+".tmp", n.id+"\n"), root.Rename(idFile+".tmp", idFile), syncRoot(root)), core.Unavailable, "write raft id")
}

func writeFile(root *os.Root, name, text string) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, text)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncRoot(root *os.Root) error {
	if runtime.GOOS == "windows" {
		return nil // this system cannot sync folders
	}
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// peer is a line of the peers file.
type peer struct {
	ID       string `json:"id"`      // raft id, or the node id of a member
	Address  string `json:"address"` // empty: unchanged
	NonVoter bool   `json:"non_voter"`
}

// recoverPeers reduces the cluster to the servers in the peers file, if there is one, after a
// majority is lost for good.
func (n *Node) recoverPeers(conf *raft.Config, exists bool, d *disk, snaps raft.SnapshotStore) error {
	if n.opts.Dir == "" {
		return nil
	}
	root, err := os.OpenRoot(n.opts.Dir)
	if err != nil {
		return core.Wrap(err, core.Unavailable, "open raft node")
	}
	defer root.Close()
	data, err := root.ReadFile(peersFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return core.Wrap(err, core.Unavailable, "recover raft cluster")
	}
	if !exists {
		return core.Errorf(core.Invalid, "recover raft cluster: there is a %s, but no state to recover", peersFile).Hint(
			"Put the file into the raft folder of a queen that has the registry, and remove it here: this queen joins that one.")
	}
	current, err := n.knownServers(conf, d, snaps)
	if err != nil {
		return err
	}
	want, err := n.parsePeers(data, current)
	if err != nil {
		return core.Errorf(core.Invalid, "recover raft cluster: %s: %w", filepath.Join(n.opts.Dir, peersFile), err).Hint(
			`It is a list of the queens that are left, the same on all of them: [{"id": "0123abcd", "address": "10.0.0.1:7834"}, …]. Or remove it.`)
	}
	n.log.Warn("recovering the raft cluster from the peers file: what only the lost queens had is lost", "servers", want.Servers)
	if err := raft.RecoverCluster(conf, fsm.NewOf(n.fsm.Table()), d, d, snaps, n.trans, want); err != nil {
		return core.Prefix(err, "recover raft cluster")
	}
	d.owed.Store(false)
	return core.Wrap(errors.Join(root.Rename(peersFile, usedFile), syncRoot(root)), core.Unavailable, "recover raft cluster")
}

// parsePeers completes the list with known facts about its servers.
func (n *Node) parsePeers(data []byte, current []raft.Server) (raft.Configuration, error) {
	var peers []peer
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&peers); err != nil {
		return raft.Configuration{}, err
	}
	var c raft.Configuration
	voters, self := 0, false
	for _, p := range peers {
		s := raft.Server{ID: raft.ServerID(p.ID), Address: raft.ServerAddress(p.Address)}
		for _, known := range current {
			if known.ID != s.ID && OfRaftID(string(known.ID)) != p.ID {
				continue
			}
			s.ID = known.ID
			if s.Address == "" {
				s.Address = known.Address
			}
		}
		if p.ID == n.opts.ID || p.ID == n.id {
			s.ID, self = raft.ServerID(n.id), true
		}
		if p.NonVoter {
			s.Suffrage = raft.Nonvoter
		} else {
			voters++
		}
		switch {
		case p.ID == "":
			return c, errors.New("a queen has no id")
		case s.Address == "":
			return c, errors.New("queen " + p.ID + " has no address, and is none of the cluster's")
		}
		for _, other := range c.Servers {
			if other.ID == s.ID || other.Address == s.Address {
				return c, errors.New("queens " + string(other.ID) + " and " + string(s.ID) + " have one id or address")
			}
		}
		c.Servers = append(c.Servers, s)
	}
	switch {
	case voters == 0:
		return c, errors.New("it has no queen with a vote")
	case !self:
		return c, errors.New("this queen, " + n.opts.ID + ", is not among them")
	}
	return c, nil
}

// knownServers returns the members in the state on disk.
func (n *Node) knownServers(conf *raft.Config, d *disk, snaps raft.SnapshotStore) ([]raft.Server, error) {
	quiet := *conf
	quiet.NoSnapshotRestoreOnStart = true
	_, nowhere := raft.NewInmemTransport("")
	c, err := raft.GetConfiguration(&quiet, fsm.NewOf(n.fsm.Table()), d, d, snaps, nowhere)
	if err != nil {
		return nil, core.Wrap(err, core.Unavailable, "read raft configuration")
	}
	return c.Servers, nil
}
