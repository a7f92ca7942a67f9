package gateway

import (
	"context"
	"io"

	"github.com/rbee-project/rbee/core"
)

// Reader makes reads as new as the client wants. Every read of Cluster and Admin answers from this
// queen's replica; Sync is called before it.
type Reader interface {
	// Sync returns when the replica is as new as c asks. Errors: Unavailable when there is no
	// leader, or no majority, to ask; Invalid for an unknown consistency.
	Sync(ctx context.Context, c core.Consistency) (core.ReadInfo, error)
}

// Authorizer knows tokens.
type Authorizer interface {
	// Authorize says whose the token is. Errors: Unauthenticated for a token that is unknown,
	// revoked or no API token; Forbidden when it lacks the scope.
	Authorize(ctx context.Context, token string, scope core.Scope) (core.Token, error)
}

// Admin is what people who look after a cluster do. Errors: NotFound, Invalid, Conflict,
// Unavailable; Unsupported where the agent is in no cluster.
type Admin interface {
	Members
	TokenKeeper
	HiveAdmin
	Snapshots
}

// Members are the nodes of the cluster, and the keys of its gossip.
type Members interface {
	Queens(ctx context.Context) ([]core.Queen, error)
	// RemoveQueen takes a queen out of raft, by node id, name or raft id.
	RemoveQueen(ctx context.Context, id string) error
	// TransferLeadership gives the leadership to a queen by node id or name; empty: to whoever is
	// most up to date.
	TransferLeadership(ctx context.Context, to string) error

	Nodes(ctx context.Context) ([]core.Node, error)
	// RevokeNode has a node's certificates refused by everybody, for ever.
	RevokeNode(ctx context.Context, id string) (core.Node, error)
	// LeaveNode has a node leave the cluster for good.
	LeaveNode(ctx context.Context, id string) (core.Node, error)

	Keyring(ctx context.Context) (core.Keyring, error)
	ChangeKeyring(ctx context.Context, c core.KeyringChange) (core.Keyring, error)
}

// TokenKeeper keeps the API and join tokens of the cluster.
type TokenKeeper interface {
	Tokens(ctx context.Context) ([]core.Token, error)
	CreateToken(ctx context.Context, r core.TokenRequest) (core.NewToken, error)
	// RotateToken gives an API token another secret.
	RotateToken(ctx context.Context, id string, r core.RotateRequest) (core.NewToken, error)
	RevokeToken(ctx context.Context, id string) (core.Token, error)
}

// HiveAdmin changes hives.
type HiveAdmin interface {
	DrainHive(ctx context.Context, hive string, drain bool) (core.Hive, error)
}

// Snapshots are the registry in a file.
type Snapshots interface {
	// SaveSnapshot writes the leader's registry to w.
	SaveSnapshot(ctx context.Context, w io.Writer) error
	// RestoreSnapshot replaces the registry by a snapshot of the same cluster.
	RestoreSnapshot(ctx context.Context, r io.Reader) (core.SnapshotInfo, error)
}
