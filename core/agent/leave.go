package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/core/hive"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/queen/membership"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
)

// leaver makes the agent leave its cluster when a queen asks it to: the agent stops as on a signal,
// stops its workers, and forgets the cluster.
type leaver struct {
	hivev1.UnimplementedAgentServiceServer
	bees    *hive.Hive          // nil: no hive
	members *membership.Members // the queen's members; nil: no queen
	gossip  *gossip.Pool        // nil: not in a cluster, nothing to leave
	log     hclog.Logger
	once    sync.Once
	told    chan struct{} // closed when the agent must stop
}

func newLeaver(bees *hive.Hive, members *membership.Members, pool *gossip.Pool, log hclog.Logger) *leaver {
	return &leaver{bees: bees, members: members, gossip: pool, log: log, told: make(chan struct{})}
}

// goodbye bounds the wait until the others have learnt that the node leaves.
const goodbye = 3 * time.Second

// Leave is hive.v1.AgentService.Leave. The agent stops after it has answered.
func (l *leaver) Leave(ctx context.Context, _ *hivev1.LeaveRequest) (*hivev1.LeaveResponse, error) {
	l.once.Do(func() {
		l.log.Warn("this node leaves the cluster")
		if l.members != nil {
			l.members.Leave()
		}
		if l.gossip != nil {
			ctx, cancel := context.WithTimeout(ctx, goodbye)
			defer cancel()
			if err := l.gossip.Leave(ctx); err != nil {
				l.log.Warn("cannot announce to all nodes that this node leaves", "error", err)
			}
		}
		if l.bees != nil {
			l.bees.TakeWorkersAlong()
		}
		close(l.told)
	})
	return &hivev1.LeaveResponse{}, nil
}

// errLeft ends the agent after Leave.
var errLeft = core.Errorf(core.Cancelled, "this node has left the cluster")

// run returns errLeft when the node must leave.
func (l *leaver) run(ctx context.Context) error {
	select {
	case <-l.told:
		return errLeft
	case <-ctx.Done():
		return ctx.Err()
	}
}

// left reports whether the node was asked to leave.
func (l *leaver) left() bool {
	select {
	case <-l.told:
		return true
	default:
		return false
	}
}

// forget removes the files that make this machine a node of the cluster. Its models and worker
// binaries stay.
func forget(dataDir string) error {
	err := pki.Remove(dataDir)
	for _, name := range []string{"raft", "gossip", "node-id"} {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dataDir, name)))
	}
	return core.Wrap(err, core.Internal, "forget the cluster")
}
