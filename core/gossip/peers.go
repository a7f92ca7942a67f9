package gossip

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/disk"
)

const (
	peersName     = "peers.json"
	maxPeers      = 256
	maxPeersBytes = 1 << 20
)

// peer is a node through which to find the pool after a restart.
type peer struct {
	ID      string `json:"id"`
	Address string `json:"address"` // IP:port
	Queen   bool   `json:"queen,omitempty"`
}

// peersFile is the content of peers.json.
type peersFile struct {
	Starts uint64 `json:"starts,omitempty"` // starts of the pool, if the pool counts them
	Peers  []peer `json:"peers"`
}

// peerFile remembers peers on disk. Its content is only a hint: it drops what it cannot read, and
// warns about what it cannot write.
type peerFile struct {
	dir string // empty: kept in memory
	log hclog.Logger

	mu    sync.Mutex
	now   peersFile
	saved []byte
	bad   bool // the last write failed, and a warning was logged
}

func openPeers(dir string, log hclog.Logger) (*peerFile, error) {
	f := &peerFile{dir: dir, log: log}
	if dir == "" {
		return f, nil
	}
	if err := disk.MakeFolder(dir); err != nil {
		return nil, core.WithHint(core.Wrap(err, core.Internal, "make the gossip folder"), "Choose another folder with -data-dir or data_dir = ….")
	}
	b, err := f.read()
	if err == nil {
		err = json.Unmarshal(b, &f.now)
	}
	if err != nil {
		f.now = peersFile{}
		if !errors.Is(err, fs.ErrNotExist) {
			log.Warn("the remembered nodes cannot be read and are forgotten", "error", err)
		}
	}
	f.now.Peers = slices.DeleteFunc(f.now.Peers, func(p peer) bool {
		_, err := netip.ParseAddrPort(p.Address)
		return err != nil || p.ID == ""
	})
	return f, nil
}

func (f *peerFile) read() ([]byte, error) {
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	file, err := root.Open(peersName)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, maxPeersBytes))
}

// start counts a start of the pool. If the count was lost, it continues from the current time,
// which exceeds any count.
func (f *peerFile) start() (uint64, error) {
	if f.dir == "" {
		return uint64(time.Now().UnixNano()), nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.now.Starts == 0 {
		f.now.Starts = uint64(time.Now().Unix())
	} else {
		f.now.Starts++
	}
	if err := f.write(); err != nil {
		return 0, core.WithHint(core.Wrap(err, core.Internal, "count the starts of gossip"), "The folder %s must be writable and not full.", f.dir)
	}
	return f.now.Starts, nil
}

// raise makes later starts count up from a number; the next save writes it.
func (f *peerFile) raise(starts uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now.Starts = max(f.now.Starts, starts)
}

// addresses returns the addresses of all remembered peers, queens first, otherwise in random order.
func (f *peerFile) addresses() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	ps := slices.Clone(f.now.Peers)
	rand.Shuffle(len(ps), func(i, j int) { ps[i], ps[j] = ps[j], ps[i] })
	slices.SortStableFunc(ps, queensFirst)
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = p.Address
	}
	return out
}

// queen reports whether a queen is remembered.
func (f *peerFile) queen() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.now.Peers, func(p peer) bool { return p.Queen })
}

// save merges fresh peers into the remembered ones and writes the file if that changes anything.
func (f *peerFile) save(fresh []peer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	slices.SortFunc(fresh, func(a, b peer) int { return strings.Compare(a.ID, b.ID) })
	all := fresh
	for _, p := range f.now.Peers {
		if _, known := slices.BinarySearchFunc(fresh, p.ID, func(a peer, id string) int { return strings.Compare(a.ID, id) }); !known {
			all = append(all, p)
		}
	}
	slices.SortStableFunc(all, queensFirst)
	f.now.Peers = all[:min(len(all), maxPeers)]
	slices.SortFunc(f.now.Peers, func(a, b peer) int { return strings.Compare(a.ID, b.ID) })
	f.keep()
}

// forget drops a peer; the next save removes it from the file.
func (f *peerFile) forget(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now.Peers = slices.DeleteFunc(f.now.Peers, func(p peer) bool { return p.ID == id })
}

func (f *peerFile) forgetAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now.Peers = nil
	f.keep()
}

// keep writes the file and warns on failure. The caller holds f.mu.
func (f *peerFile) keep() {
	err := f.write()
	if err != nil && !f.bad {
		f.log.Warn("the nodes of the pool cannot be remembered", "error", err)
	}
	f.bad = err != nil
}

// write replaces the file atomically if it would change. The caller holds f.mu.
func (f *peerFile) write() error {
	if f.dir == "" {
		return nil
	}
	b, err := json.MarshalIndent(f.now, "", "  ")
	if err != nil || string(b) == string(f.saved) {
		return err
	}
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	tmp := "." + peersName + ".new"
	_ = root.Remove(tmp) // left by a crash
	file, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(append(b, '\n'))
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := root.Rename(tmp, peersName); err != nil {
		return err
	}
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	f.saved = b
	return d.Sync()
}

func queensFirst(a, b peer) int {
	switch {
	case a.Queen == b.Queen:
		return 0
	case a.Queen:
		return -1
	}
	return 1
}

// remember returns the nodes through which to find the pool: all that did not leave.
func (p *Pool) remember() []peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leaving {
		return nil
	}
	out := make([]peer, 0, min(len(p.members), maxPeers))
	for _, e := range p.members {
		if e.Status != Left && (len(out) < maxPeers || e.Queen) {
			out = append(out, peer{ID: e.ID, Address: e.GossipAddress, Queen: e.Queen})
		}
	}
	return out
}
