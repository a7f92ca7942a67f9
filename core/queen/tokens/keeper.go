// Package tokens keeps the API and join tokens of the registry: makes, renews, revokes and expires
// them, and says whose one is.
package tokens

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/state"
)

// DefaultGrace is Options.Grace where nothing else is said.
const DefaultGrace = time.Hour

// Registry is the replicated registry, as far as a Keeper needs it; see core/registry.
type Registry interface {
	View() *state.Snapshot
	Write(ctx context.Context, requestID string, c *raftv1.Command) error
	CatchUp(ctx context.Context) error
	Cluster() (core.Cluster, error)
	// Silence returns for how long this queen has heard of no leader; 0 if it leads, and alone.
	Silence() time.Duration
	Alone() bool
}

// Options say what a Keeper works with. Registry is required.
type Options struct {
	Registry Registry
	Logger   hclog.Logger // nil: no log
	// Grace is how long a token is taken after it was proved last while this queen is out of
	// contact with a leader, unless the cluster has setting.TokenGrace; 0 takes none then.
	Grace time.Duration
	Now   func() time.Time // stamps tokens; nil: time.Now
	// Target returns the id of the model that a name means, as placement.Placer does; nil: names
	// are ids.
	Target func(ctx context.Context, name string) (string, error)
}

// Keeper keeps the tokens of a registry. It is safe for concurrent use.
type Keeper struct {
	opts     Options
	log      hclog.Logger
	registry Registry
	since    time.Time // when it was made, by the monotonic clock
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
