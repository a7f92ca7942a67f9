package gateway

import (
	"context"
	"io"

	"github.com/rbee-project/rbee/core"
)

// Reader makes reads as fresh as the client wants. Every read of Cluster and Admin is answered from
// this queen's replica, after a call of Sync.
type Reader interface {
	// Sync returns once the replica is as fresh as c requires. Errors: Unavailable without a leader
	// or a majority; Invalid for an unknown consistency.
	Sync(ctx context.Context, c core.Consistency) (core.ReadInfo, error)
}

// Authorizer checks tokens.
type Authorizer interface {
	// Authorize returns the token that the text belongs to. Errors: Unauthenticated for a token
	// that is unknown, revoked or not an API token; Forbidden if it lacks the scope.
	Authorize(ctx context.Context, token string, scope core.Scope) (core.Token, error)
}

// Admin is the administration of a cluster. Errors: NotFound, Invalid, Conflict, Unavailable;
// Unsupported if the agent belongs to no cluster.
type Admin interface {
	Members
	TokenKeeper
	HiveAdmin
	Snapshots
}

// Members manages the nodes of the cluster and its gossip keys.
type Members interface {
	Queens(ctx context.Context) ([]core.Queen, error)
	// RemoveQueen removes a queen from raft, by node id, name or raft id.
	RemoveQueen(ctx context.Context, id string) error
	// TransferLeadership transfers the leadership to a queen, by node id or name; empty: to the
	// most up-to-date one.
	TransferLeadership(ctx context.Context, to string) error

	Nodes(ctx context.Context) ([]core.Node, error)
	// RevokeNode revokes a node permanently: every node refuses its certificates.
	RevokeNode(ctx context.Context, id string) (core.Node, error)
	// LeaveNode makes a node leave the cluster permanently.
	LeaveNode(ctx context.Context, id string) (core.Node, error)

	Keyring(ctx context.Context) (core.Keyring, error)
	ChangeKeyring(ctx context.Context, c core.KeyringChange) (core.Keyring, error)
}

// TokenKeeper manages the API and join tokens of the cluster.
type TokenKeeper interface {
	Tokens(ctx context.Context) ([]core.Token, error)
	CreateToken(ctx context.Context, r core.TokenRequest) (core.NewToken, error)
	// RotateToken replaces the secret of an API token.
	RotateToken(ctx context.Context, id string, r core.RotateRequest) (core.NewToken, error)
	RevokeToken(ctx context.Context, id string) (core.Token, error)
}

// HiveAdmin administers hives.
type HiveAdmin interface {
	DrainHive(ctx context.Context, hive string, drain bool) (core.Hive, error)
}

// Snapshots exports and restores the registry.
type Snapshots interface {
	// SaveSnapshot writes the leader's registry to w.
	SaveSnapshot(ctx context.Context, w io.Writer) error
	// RestoreSnapshot replaces the registry with a snapshot of the same cluster.
	RestoreSnapshot(ctx context.Context, r io.Reader) (core.SnapshotInfo, error)
}
