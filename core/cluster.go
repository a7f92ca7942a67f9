package core

import (
	"slices"
	"time"
)

// Role is what a node does in the cluster. Its certificate includes its roles.
type Role string

// The roles. A node may have both.
const (
	RoleQueen Role = "queen"
	RoleHive  Role = "hive"
)

// Node is a machine that was admitted to the cluster.
type Node struct {
	ID                   string    `json:"id"`   // kept on its disk; its hive and its queen use it as their id
	Name                 string    `json:"name"` // unique in the cluster
	Roles                []Role    `json:"roles"`
	RPCAddress           string    `json:"rpc_address"` // host:port
	KeyHash              []byte    `json:"-"`           // SHA-256 of its public key
	CertificateExpiresAt time.Time `json:"certificate_expires_at,omitzero"`
	Revoked              bool      `json:"revoked"`
	CreateIndex          uint64    `json:"create_index"`
	ModifyIndex          uint64    `json:"modify_index"`
}

// Has reports whether the node has the role.
func (n Node) Has(r Role) bool { return slices.Contains(n.Roles, r) }

// Scope is a permission of a token.
type Scope string

// The scopes. None includes another: a token lists all its scopes.
const (
	ScopeInfer   Scope = "infer"   // use models
	ScopeRead    Scope = "read"    // read status
	ScopeOperate Scope = "operate" // change running workers and stored files
	ScopeAdmin   Scope = "admin"   // change permissions
)

// ScopeAny asks only whether a token is valid. No token has it.
const ScopeAny Scope = ""

// Scopes returns all scopes, the weakest first.
func Scopes() []Scope { return []Scope{ScopeInfer, ScopeRead, ScopeOperate, ScopeAdmin} }

// TokenKind is the purpose of a token.
type TokenKind string

// The token kinds.
const (
	TokenAPI  TokenKind = "api"  // sent with requests to the HTTP API
	TokenJoin TokenKind = "join" // admits one machine to the cluster
)

// Token is the registry's record of a token; the token itself is shown once, when it is created.
type Token struct {
	ID          string    `json:"id"`   // the public part of the token
	Name        string    `json:"name"` // for people
	Kind        TokenKind `json:"kind"`
	SecretHash  []byte    `json:"-"`                // SHA-256 of the secret part
	Scopes      []Scope   `json:"scopes,omitempty"` // for an API token
	Roles       []Role    `json:"roles,omitempty"`  // for a join token: roles that a machine may join with; a queen's has both
	CreatedAt   time.Time `json:"created_at"`
	TTL         Duration  `json:"ttl,omitempty"`     // 0: no expiry
	UsedBy      string    `json:"used_by,omitempty"` // Node.ID that used a join token
	UsedAt      time.Time `json:"used_at,omitzero"`  // by the leader's clock
	UsedKeyHash []byte    `json:"-"`

	// For an API token:
	Models   []string `json:"models,omitempty"` // Model.IDs that it may use; empty: all
	Limits   []Limit  `json:"limits,omitempty"`
	Priority Priority `json:"priority,omitempty"`
	// RotatedAt is when it got its current secret, if that is not its first. The previous secret is
	// still accepted for Overlap, by the leader's clock; an Overlap of 0 means it is no longer
	// accepted.
	RotatedAt          time.Time `json:"rotated_at,omitzero"`
	Overlap            Duration  `json:"overlap,omitempty"`
	PreviousSecretHash []byte    `json:"-"`
	// LastUsedAt is reported by queens from time to time: it may be out of date by
	// TokenUsePrecision.
	LastUsedAt time.Time `json:"last_used_at,omitzero"`

	CreateIndex uint64 `json:"create_index"`
	ModifyIndex uint64 `json:"modify_index"` // LastUsedAt does not change it
}

// TokenUsePrecision bounds how much later than Token.LastUsedAt a token may have been used.
const TokenUsePrecision = 10 * time.Minute

// MayAsk reports whether an API token may use the model with this id.
func (t Token) MayAsk(model string) bool {
	return len(t.Models) == 0 || slices.Contains(t.Models, model)
}

// Allows reports whether an API token has the scope.
func (t Token) Allows(s Scope) bool { return t.Kind == TokenAPI && slices.Contains(t.Scopes, s) }

// TokenRequest asks for a new token.
type TokenRequest struct {
	Kind   TokenKind `json:"kind"`
	Name   string    `json:"name,omitempty"`
	Scopes []Scope   `json:"scopes,omitempty"` // api: one or more
	Roles  []Role    `json:"roles,omitempty"`  // join; empty: hive. A queen may also run workers: queen stands for both roles
	TTL    Duration  `json:"ttl,omitempty"`    // api: 0 means no expiry; join: 0 means 1 hour, at most 24 hours

	// Only for API tokens with the scopes infer and read: a stronger token could raise its own
	// limits.
	Models []string `json:"models,omitempty"` // by any of their names
	Limits []Limit  `json:"limits,omitempty"`
	// Priority applies to any API token.
	Priority Priority `json:"priority,omitempty"`
}

// How long a token's previous secret is accepted after a rotation.
const (
	DefaultTokenOverlap = 24 * time.Hour
	MaxTokenOverlap     = 30 * 24 * time.Hour
)

// RotateRequest asks for a new secret of an API token.
type RotateRequest struct {
	Overlap *Duration `json:"overlap,omitempty"` // nil: DefaultTokenOverlap; 0: the previous secret is refused at once
}

// NewToken is a token with its secret, which is stored nowhere.
type NewToken struct {
	Token
	Secret string `json:"token"` // the whole token, ready to use
}

// Cluster is what all nodes of a cluster share, as stored in the registry. Sealed fields are opened
// with the queens' seal key.
type Cluster struct {
	ID               string `json:"id"`
	Name             string `json:"name"`
	CACertificates   []byte `json:"-"` // PEM, the signing one first
	SealedCAKey      []byte `json:"-"` // empty: certificates are signed elsewhere
	SealedGossipKeys []byte `json:"-"`
	GossipVersion    uint64 `json:"-"` // increases with every change of the keys
	CreateIndex      uint64 `json:"create_index"`
	ModifyIndex      uint64 `json:"modify_index"`
}

// Consistency is how up to date a read must be.
type Consistency string

// The consistencies.
const (
	// ConsistencyDefault is as up to date as the leader. A leader that was cut off and has not
	// noticed yet may answer with outdated data, for at most its lease.
	ConsistencyDefault Consistency = "default"
	// ConsistencyStale is the state of the queen that is asked, even without a leader.
	ConsistencyStale Consistency = "stale"
	// ConsistencyLinearizable includes everything that was acknowledged before the read began. It
	// costs a round trip to a majority.
	ConsistencyLinearizable Consistency = "linearizable"
)

// ReadInfo tells how up to date an answer is.
type ReadInfo struct {
	Index       uint64   `json:"index"`        // raft index that the answer includes at least
	Leader      string   `json:"leader"`       // Node.ID; empty: unknown
	LastContact Duration `json:"last_contact"` // time since this queen heard from the leader; 0 on the leader
	Stale       bool     `json:"stale"`        // the leader was not asked
}

// HiveSight is how one queen sees a hive.
type HiveSight struct {
	Queen   string   `json:"queen"`            // Node.ID
	Linked  bool     `json:"linked"`           // the hive is connected to it
	Silence Duration `json:"silence"`          // time since the hive's last report to it
	Heard   bool     `json:"heard"`            // a report was received; otherwise Silence is 0
	Gossip  string   `json:"gossip,omitempty"` // "alive", "failed", "left", "unknown"
	Problem string   `json:"problem,omitempty"`
}

// HiveHealth is a hive as every queen sees it.
type HiveHealth struct {
	Hive      Hive        `json:"hive"`
	Reachable bool        `json:"reachable"` // the answering queen just reached its RPC port
	Problem   string      `json:"problem,omitempty"`
	Queens    []HiveSight `json:"queens"`
}

// RefreshResult is the result of probing a hive's devices and worker types again.
type RefreshResult struct {
	Before            []Device `json:"before"`
	After             []Device `json:"after"`
	WorkerTypesBefore []string `json:"worker_types_before"`
	WorkerTypesAfter  []string `json:"worker_types_after"`
}

// Keyring lists the keys that encrypt gossip, by fingerprint only.
type Keyring struct {
	Primary string   `json:"primary"`
	Keys    []string `json:"keys"` // fingerprints, the primary first
}

// KeyringChange is one step of a key rotation: install a new key, use it, remove the old one.
type KeyringChange struct {
	Action      string `json:"action"`                // "install", "use", "remove"
	Key         string `json:"key,omitempty"`         // install: base64 of 32 bytes; empty: generate a new one
	Fingerprint string `json:"fingerprint,omitempty"` // use, remove
}

// SnapshotInfo describes the contents of a snapshot of the registry.
type SnapshotInfo struct {
	Format  uint32 `json:"format"`
	FSM     uint32 `json:"fsm"`
	Index   uint64 `json:"index"`
	Cluster string `json:"cluster"` // id; empty: none
	Hives   int    `json:"hives"`
	Workers int    `json:"workers"`
	Nodes   int    `json:"nodes"`
	Tokens  int    `json:"tokens"`
}

// MaxTokenGrace bounds how long a queen without a leader may accept tokens that it verified
// earlier.
const MaxTokenGrace = 30 * 24 * time.Hour

// Setting is a setting that all queens share. The registry holds it once it is set.
type Setting struct {
	Name    string `json:"name"`
	Value   string `json:"value"` // as text; empty if it is unset and each queen has its own value
	Set     bool   `json:"set"`   // it was set; otherwise value is the default
	Values  string `json:"values"`
	Doc     string `json:"doc"`
	Problem string `json:"problem,omitempty"` // why the answering queen does not use it
}
