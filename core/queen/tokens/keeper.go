// Package tokens manages the API and join tokens of the registry: it creates, rotates, revokes and
// expires them, and authorizes requests by them.
package tokens

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/state"
)

// DefaultGrace is the default of Options.Grace.
const DefaultGrace = time.Hour

// Registry is the part of the replicated registry that a Keeper needs; see core/registry.
type Registry interface {
	View() *state.Snapshot
	Write(ctx context.Context, requestID string, c *raftv1.Command) error
	CatchUp(ctx context.Context) error
	Cluster() (core.Cluster, error)
	// Silence returns how long this queen has heard from no leader; 0 if it leads or is alone.
	Silence() time.Duration
	Alone() bool
}

// Options are the dependencies of a Keeper. Registry is required.
type Options struct {
	Registry Registry
	Logger   hclog.Logger // nil: no log
	// Grace is how long a token is accepted after its last verification while this queen is out of
	// contact with a leader, unless the cluster has setting.TokenGrace; 0: not at all.
	Grace time.Duration
	Now   func() time.Time // stamps tokens; nil: time.Now
	// Target returns the id of the model that a name refers to, as placement.Placer does; nil:
	// names are ids.
	Target func(ctx context.Context, name string) (string, error)
}

// Keeper manages the tokens of a registry. It is safe for concurrent use.
type Keeper struct {
	opts     Options
	log      hclog.Logger
	registry Registry
	since    time.Time // creation time of the Keeper, by the monotonic clock
	proofs   proofs
	uses     uses
	catching catchUps
}

// New returns the keeper of a registry's tokens.
func New(o Options) *Keeper {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Keeper{opts: o, log: o.Logger, registry: o.Registry, since: time.Now(), catching: catchUps{turn: make(chan struct{}, 1)}}
}
