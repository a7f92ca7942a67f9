package agent

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/core/hive"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// hinted is a gossip stub that returns the test's members.
type hinted []gossip.Member

func (h hinted) Members() []gossip.Member { return h }
func (h hinted) Changed() <-chan struct{} { return nil }

// hiveIdentity implements the part of an identity that a pool of connections uses.
type hiveIdentity struct{ rpc.Identity }

func (hiveIdentity) Node() pki.Node {
	return pki.Node{ID: "cccccccc", Roles: []core.Role{core.RoleHive}}
}

func newQueenList(t *testing.T, g hinted) *queenList {
	t.Helper()
	pool := rpc.NewPool(rpc.PoolOptions{Identity: hiveIdentity{}})
	t.Cleanup(func() { must.NoError(t, pool.Close()) })
	l, err := openQueenList(filepath.Join(t.TempDir(), "queens.json"), "cccccccc", pool, hclog.NewNullLogger())
	must.NoError(t, err)
	l.gossip = g
	return l
}

// An unreachable queen is tried at the address that gossip hints at, and at the old one again if it
// is not there either.
func TestQueenListTriesHint(t *testing.T) {
	t.Parallel()
	l := newQueenList(t, hinted{{ID: "aaaaaaaa", Queen: true, Status: gossip.Alive, RPCAddress: "10.1.0.1:7834"}})
	l.SetView(&queenv1.ClusterView{Index: 1, Queens: []*queenv1.QueenAddress{{Id: "aaaaaaaa", RpcAddress: "10.0.0.1:7834"}}})
	was := []hive.QueenAddress{{ID: "aaaaaaaa", RPCAddress: "10.0.0.1:7834"}}
	is := []hive.QueenAddress{{ID: "aaaaaaaa", RPCAddress: "10.1.0.1:7834"}}
	must.Eq(t, was, l.List())
	changed := l.Changed()
	l.Reset(was[0])
	<-changed
	must.Eq(t, is, l.List())
	l.Reset(is[0])
	must.Eq(t, was, l.List())
}

// Forged queens in gossip are tried, a few at a time, and crowd out neither a known queen nor a
// real new one.
func TestQueenListBounds(t *testing.T) {
	t.Parallel()
	var g hinted
	for i := range 5000 {
		g = append(g, gossip.Member{ID: fmt.Sprintf("%08x", i), Queen: true, Status: gossip.Alive, RPCAddress: "10.6.6.6:7834"})
	}
	g = append(g, gossip.Member{ID: "bbbbbbbb", Queen: true, Status: gossip.Alive, RPCAddress: "10.0.0.2:7834"})
	l := newQueenList(t, g[len(g)-40:])
	l.SetView(&queenv1.ClusterView{Index: 1, Queens: []*queenv1.QueenAddress{{Id: "aaaaaaaa", RpcAddress: "10.0.0.1:7834"}}})
	for range 3 {
		list := l.List()
		must.Len(t, 1+maxStrangers, list)
		must.Eq(t, "aaaaaaaa", list[0].ID)
		if list[len(list)-1].ID == "bbbbbbbb" || list[1].ID == "bbbbbbbb" {
			return
		}
		for _, q := range list[1:] {
			if q.ID != "bbbbbbbb" {
				l.Reset(q)
			} else {
				return
			}
		}
	}
	t.Fatal("the real one was never tried")
}
