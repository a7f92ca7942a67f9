package agent

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/raft/node"
)

// room is a gossip pool that a test fills, and a queen in it without a cluster. The test's
// goroutine changes it while the other one waits.
type room struct {
	members  []gossip.Member
	changed  chan struct{}
	answer   error // returned by Bootstrap
	hasState bool
	voters   []node.Voter // passed to Bootstrap
}

func (r *room) announced() ([]gossip.Member, <-chan struct{}) { return r.members, r.changed }
func (r *room) HasState() bool                                { return r.hasState }
func (r *room) Bootstrap(v []node.Voter) error {
	r.voters = v
	return r.answer
}

func (r *room) change(f func()) {
	synctest.Wait()
	f()
	old := r.changed
	r.changed = make(chan struct{})
	close(old)
}

func newQueen(id string) gossip.Member {
	return gossip.Member{ID: id, Name: id, Queen: true, Status: gossip.Alive, RaftID: id + ".00000001", RPCAddress: id + ":7834", BootstrapExpect: 3}
}

// A queen that expects three queens waits, bootstraps or gives up, depending on what it finds.
func TestBegin(t *testing.T) {
	t.Parallel()
	broken := errors.New("the disk is full")
	for name, tt := range map[string]struct {
		answer error
		last   func(r *room) // the change after two queens have met
		voters int
		want   error
	}{
		"three meet": {last: func(r *room) { r.members = append(r.members, newQueen("c")) }, voters: 3},
		// Two queens of three are a majority: they elect a leader while this one still counts, so
		// that it learns of the cluster from raft first.
		"the others were faster": {
			answer: core.Errorf(core.Conflict, "bootstrap: this queen is part of a cluster already"),
			last:   func(r *room) { r.members = append(r.members, newQueen("c")) }, voters: 3,
		},
		"it fails": {answer: broken, last: func(r *room) { r.members = append(r.members, newQueen("c")) }, voters: 3, want: broken},
		"it is added": {last: func(r *room) {
			r.members[1].HasState, r.hasState = true, true
		}},
		"a cluster exists": {last: func(r *room) { r.members[1].HasState = true }, want: context.Canceled},
		"another number is expected": {last: func(r *room) {
			r.members = append(r.members, newQueen("c"))
			r.members[2].BootstrapExpect = 5
		}, want: context.Canceled},
		"too many": {last: func(r *room) { r.members = append(r.members, newQueen("c"), newQueen("d")) }, want: context.Canceled},
		"hives and the dead do not count": {last: func(r *room) {
			dead := newQueen("c")
			dead.Status = gossip.Failed
			r.members = append(r.members, dead, gossip.Member{ID: "d", Hive: true, Status: gossip.Alive})
		}, want: context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := &room{members: []gossip.Member{newQueen("b"), newQueen("a")}, changed: make(chan struct{}), answer: tt.answer}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- begin(ctx, r, r.announced, 3, hclog.NewNullLogger()) }()
				r.change(func() { must.SliceEmpty(t, r.voters) })
				r.change(func() { tt.last(r) })
				synctest.Wait()
				cancel()
				err := <-done
				must.True(t, errors.Is(err, tt.want), must.Sprint(err))
				must.SliceLen(t, tt.voters, r.voters)
				if tt.voters > 0 {
					must.Eq(t, node.Voter{ID: "a.00000001", Address: "a:7834"}, r.voters[0])
				}
			})
		})
	}
}
