package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/core/hive"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// queenList is the list of queens to which a hive keeps connections: those that a queen named last,
// and those that gossip knows. It is stored on disk, so that a restarted machine finds them. It
// implements the hive's Queens.
type queenList struct {
	path string
	pool *rpc.Pool
	log  hclog.Logger
	// These fields are set before the first call.
	pipe   grpc.ClientConnInterface   // to the queen in this process; nil: none
	gossip hints                      // nil: not yet
	onView func(*queenv1.ClusterView) // nil: no callback

	mu      sync.Mutex        // guards below
	self    hive.QueenAddress // this node's; its ID never changes
	index   uint64            // index of the newest view
	queens  []hive.QueenAddress
	failed  map[string]string // by node ID: the address at which a queen was last unreachable
	changed chan struct{}     // closed and replaced at each change
}

const (
	// maxStrangers bounds the queens known from gossip alone.
	maxStrangers = 16
	maxFailed    = 1024
)

// hints is the part of gossip that the list of queens uses.
type hints interface {
	Members() []gossip.Member
	Changed() <-chan struct{}
}

// storedQueens is the content of queens.json.
type storedQueens struct {
	Queens []storedQueen `json:"queens"`
}

type storedQueen struct {
	ID         string `json:"id"`
	RPCAddress string `json:"rpc_address"`
}

func openQueenList(path, self string, pool *rpc.Pool, log hclog.Logger) (*queenList, error) {
	l := &queenList{path: path, self: hive.QueenAddress{ID: self}, pool: pool, log: log, failed: map[string]string{}, changed: make(chan struct{})}
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return l, nil
	case err != nil:
		return nil, core.Wrap(err, core.Internal, "read the list of queens")
	}
	var stored storedQueens
	if err := json.Unmarshal(b, &stored); err != nil {
		log.Warn("the list of queens is not readable, gossip has to find them", "error", err)
		return l, nil
	}
	for _, q := range stored.Queens {
		l.queens = append(l.queens, hive.QueenAddress{ID: q.ID, RPCAddress: q.RPCAddress})
	}
	return l, nil
}

func storeQueens(path string, queens []hive.QueenAddress) error {
	var stored storedQueens
	for _, q := range queens {
		stored.Queens = append(stored.Queens, storedQueen(q))
	}
	b, err := json.MarshalIndent(stored, "", "  ")
	if err != nil {
		return core.Wrap(err, core.Internal, "keep the list of queens")
	}
	return writeFile(path, append(b, '\n'))
}

// List returns the queens to keep a connection to. Gossip is a hint: it adds another address to try
// for a queen that is unreachable at the known one, and some queens that are in no view yet. Their
// certificates decide.
func (l *queenList) List() []hive.QueenAddress {
	var members []gossip.Member
	if l.gossip != nil {
		members = l.gossip.Members()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	list := slices.Clone(l.queens)
	known := func(id string) bool {
		return slices.ContainsFunc(list, func(q hive.QueenAddress) bool { return q.ID == id })
	}
	var strangers, lost []hive.QueenAddress
	for _, m := range members {
		if !m.Queen || m.Status != gossip.Alive {
			continue
		}
		q := hive.QueenAddress{ID: m.ID, RPCAddress: m.RPCAddress}
		at := slices.IndexFunc(list, func(q hive.QueenAddress) bool { return q.ID == m.ID })
		switch {
		case at >= 0 && l.failed[m.ID] == list[at].RPCAddress:
			list[at] = q
		case at >= 0:
		case l.failed[m.ID] == m.RPCAddress:
			lost = append(lost, q)
		default:
			strangers = append(strangers, q)
		}
	}
	strangers = append(strangers, lost...)
	list = append(list, strangers[:min(len(strangers), maxStrangers)]...)
	if l.pipe != nil && !known(l.self.ID) {
		list = append(list, l.self)
	}
	return list
}

// setSelf records this node's current address.
func (l *queenList) setSelf(address string) {
	l.mu.Lock()
	l.self.RPCAddress = address
	l.mu.Unlock()
	l.news()
}

// Changed returns a channel that is closed when List has a new result.
func (l *queenList) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

func (l *queenList) news() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
}

// follow reports the changes that gossip sees, until ctx ends.
func (l *queenList) follow(ctx context.Context) error {
	for {
		changed := l.gossip.Changed()
		l.news()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Conn returns the connection to a queen.
func (l *queenList) Conn(q hive.QueenAddress) (grpc.ClientConnInterface, error) {
	if q.ID == l.self.ID && l.pipe != nil {
		return l.pipe, nil
	}
	c, err := l.pool.Conn(q.ID, q.RPCAddress, core.RoleQueen)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Reset makes the next Conn dial again, and List try another address.
func (l *queenList) Reset(q hive.QueenAddress) {
	if q.ID == l.self.ID && l.pipe != nil {
		return
	}
	l.pool.Forget(q.ID)
	l.mu.Lock()
	if len(l.failed) >= maxFailed {
		clear(l.failed)
	}
	l.failed[q.ID] = q.RPCAddress
	l.mu.Unlock()
	l.news()
}

// SetView adopts a queen's view of the cluster.
func (l *queenList) SetView(v *queenv1.ClusterView) {
	l.mu.Lock()
	if v.GetIndex() < l.index {
		l.mu.Unlock()
		return
	}
	l.index = v.GetIndex()
	var queens []hive.QueenAddress
	for _, q := range v.GetQueens() {
		queens = append(queens, hive.QueenAddress{ID: q.GetId(), RPCAddress: q.GetRpcAddress()})
	}
	same := slices.Equal(queens, l.queens) || len(queens) == 0 // a queen without state knows none
	if !same {
		l.queens = queens
		if err := storeQueens(l.path, queens); err != nil {
			l.log.Error("cannot keep the list of queens", "error", err)
		}
	}
	l.mu.Unlock()
	if !same {
		l.news()
	}
	if l.onView != nil {
		l.onView(v)
	}
}

// gossipHosts returns where gossip may find the queens: their hosts, with this node's gossip port.
func (l *queenList) gossipHosts(port int) []string {
	var out []string
	for _, q := range l.List() {
		if host, _, err := net.SplitHostPort(q.RPCAddress); err == nil && q.ID != l.self.ID {
			out = append(out, net.JoinHostPort(host, strconv.Itoa(port)))
		}
	}
	return out
}
