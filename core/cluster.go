package core

import (
	"slices"
	"time"
)

// Role is what a node does in the cluster. Its certificate says so.
type Role string

// The roles. A node may have both.
const (
	RoleQueen Role = "queen"
	RoleHive  Role = "hive"
)

// Node is a machine that was taken into the cluster.
type Node struct {
	ID                   string    `json:"id"`   // kept on its disk; a hive and a queen of one node have it as their id
	Name                 string    `json:"name"` // unique in the cluster
	Roles                []Role    `json:"roles"`
	RPCAddress           string    `json:"rpc_address"` // host:port
	KeyHash              []byte    `json:"-"`           // SHA-256 of its public key
	CertificateExpiresAt time.Time `json:"certificate_expires_at,omitzero"`
	Revoked              bool      `json:"revoked"`
	CreateIndex          uint64    `json:"create_index"`
	ModifyIndex          uint64    `json:"modify_index"`
}

// Has says whether the node has the role.
func (n Node) Has(r Role) bool { return slices.Contains(n.Roles, r) }

// Scope is what a token allows.
type Scope string

// The scopes. None includes another: a token lists all that it allows.
const (
	ScopeInfer   Scope = "infer"   // ask models
	ScopeRead    Scope = "read"    // look
	ScopeOperate Scope = "operate" // change what runs and what is stored
	ScopeAdmin   Scope = "admin"   // change who may do what
)

// ScopeAny asks whether a token is valid at all, whatever it allows. No token has it.
const ScopeAny Scope = ""

// Scopes are all scopes, the weakest first.
func Scopes() []Scope { return []Scope{ScopeInfer, ScopeRead, ScopeOperate, ScopeAdmin} }

// TokenKind says what a token is for.
type TokenKind string

// The token kinds.
const (
	TokenAPI  TokenKind = "api"  // sent with requests to the HTTP API
	TokenJoin TokenKind = "join" // takes one machine into the cluster
)

// Token is what the registry knows of a token; the token itself is shown once, when it is made.
type Token struct {
	ID          string    `json:"id"`   // the public part of the token
	Name        string    `json:"name"` // for people
	Kind        TokenKind `json:"kind"`
	SecretHash  []byte    `json:"-"`                // SHA-256 of the secret part
	Scopes      []Scope   `json:"scopes,omitempty"` // of an API token
	Roles       []Role    `json:"roles,omitempty"`  // of a join token: what a machine may join as; a queen's has both
	CreatedAt   time.Time `json:"created_at"`
	TTL         Duration  `json:"ttl,omitempty"`     // 0: for ever
	UsedBy      string    `json:"used_by,omitempty"` // Node.ID that a join token took in
	UsedAt      time.Time `json:"used_at,omitzero"`  // by the leader's clock
	UsedKeyHash []byte    `json:"-"`

	// Of an API token:
	Models   []string `json:"models,omitempty"` // Model.IDs that it may ask; none: all
	Limits   []Limit  `json:"limits,omitempty"`
	Priority Priority `json:"priority,omitempty"`
	// RotatedAt is when it got its present secret, where that is not its first. The one before is
	// taken as well for Overlap, by the leader's clock; 0: it is not taken any more.
	RotatedAt          time.Time `json:"rotated_at,omitzero"`
	Overlap            Duration  `json:"overlap,omitempty"`
	PreviousSecretHash []byte    `json:"-"`
	// LastUsedAt is told by queens from time to time: it may be TokenUsePrecision old.
	LastUsedAt time.Time `json:"last_used_at,omitzero"`

	CreateIndex uint64 `json:"create_index"`
	ModifyIndex uint64 `json:"modify_index"` // LastUsedAt does not change it
}

// TokenUsePrecision is how much later than Token.LastUsedAt a token may have been used.
const TokenUsePrecision = 10 * time.Minute

// MayAsk reports whether an API token may use the model with this id.
func (t Token) MayAsk(model string) bool {
	return len(t.Models) == 0 || slices.Contains(t.Models, model)
}

// Allows says whether an API token has the scope.
func (t Token) Allows(s Scope) bool { return t.Kind == TokenAPI && slices.Contains(t.Scopes, s) }

// TokenRequest asks for a new token.
type TokenRequest struct {
	Kind   TokenKind `json:"kind"`
	Name   string    `json:"name,omitempty"`
	Scopes []Scope   `json:"scopes,omitempty"` // api: one or more
	Roles  []Role    `json:"roles,omitempty"`  // join; empty: hive. A queen may run workers as well: queen stands for both
	TTL    Duration  `json:"ttl,omitempty"`    // api: 0 is for ever; join: 0 is 1 hour, at most 24 hours

	// Only for API tokens with the scopes infer and read: a stronger token could raise its own
	// limits.
	Models []string `json:"models,omitempty"` // by any of their names
	Limits []Limit  `json:"limits,omitempty"`
	// Priority is for any API token.
	Priority Priority `json:"priority,omitempty"`
}

// The time for which a token's former secret is taken after a rotation.
const (
	DefaultTokenOverlap = 24 * time.Hour
	MaxTokenOverlap     = 30 * 24 * time.Hour
)

// RotateRequest asks for a new secret of an API token.
type RotateRequest struct {
	Overlap *Duration `json:"overlap,omitempty"` // nil: DefaultTokenOverlap; 0: the former secret is refused at once
}

// NewToken is a token with its secret, which is nowhere else.
type NewToken struct {
	Token
	Secret string `json:"token"` // the whole token, as it is to be used
}

// Cluster is what all nodes of a cluster share, as the registry knows it. Sealed fields open with
// the queens' seal key.
type Cluster struct {
	ID               string `json:"id"`
	Name             string `json:"name"`
	CACertificates   []byte `json:"-"` // PEM, the one that signs first
	SealedCAKey      []byte `json:"-"` // empty: certificates are signed elsewhere
	SealedGossipKeys []byte `json:"-"`
	GossipVersion    uint64 `json:"-"` // grows with every change of the keys
	CreateIndex      uint64 `json:"create_index"`
	ModifyIndex      uint64 `json:"modify_index"`
}

// Consistency is how new a read must be.
type Consistency string

// The consistencies.
const (
	// ConsistencyDefault is as new as the leader knows. A leader that was cut off and has not
	// noticed yet may answer with what was so until then, for at most its lease.
	ConsistencyDefault Consistency = "default"
	// ConsistencyStale is what the queen that is asked knows, also without a leader.
	ConsistencyStale Consistency = "stale"
	// ConsistencyLinearizable has everything that was acknowledged before the read began. It costs
	// a round to a majority.
	ConsistencyLinearizable Consistency = "linearizable"
)

// ReadInfo says how new an answer is.
type ReadInfo struct {
	Index       uint64   `json:"index"`        // raft index that the answer has at least
	Leader      string   `json:"leader"`       // Node.ID; empty: none known
	LastContact Duration `json:"last_contact"` // since this queen heard of the leader; 0 on the leader
	Stale       bool     `json:"stale"`        // the leader was not asked
}

// HiveSight is how one queen sees a hive.
type HiveSight struct {
	Queen   string   `json:"queen"`            // Node.ID
	Linked  bool     `json:"linked"`           // the hive has a line to it
	Silence Duration `json:"silence"`          // since the hive's last report to it
	Heard   bool     `json:"heard"`            // there was a report; otherwise Silence is 0
	Gossip  string   `json:"gossip,omitempty"` // "alive", "failed", "left", "unknown"
	Problem string   `json:"problem,omitempty"`
}

// HiveHealth is a hive as every queen sees it.
type HiveHealth struct {
	Hive      Hive        `json:"hive"`
	Reachable bool        `json:"reachable"` // the answering queen reached its RPC port just now
	Problem   string      `json:"problem,omitempty"`
	Queens    []HiveSight `json:"queens"`
}

// RefreshResult is what a new look at a hive's devices and worker types found.
type RefreshResult struct {
	Before            []Device `json:"before"`
	After             []Device `json:"after"`
	WorkerTypesBefore []string `json:"worker_types_before"`
	WorkerTypesAfter  []string `json:"worker_types_after"`
}

// Keyring is the keys that encrypt gossip. Keys are shown by their fingerprints only.
type Keyring struct {
	Primary string   `json:"primary"`
	Keys    []string `json:"keys"` // fingerprints, the primary first
}

// KeyringChange is one step of a key rotation: install a new key, use it, remove the old one.
type KeyringChange struct {
	Action      string `json:"action"`                // "install", "use", "remove"
	Key         string `json:"key,omitempty"`         // install: base64 of 32 bytes; empty: a new one is made
	Fingerprint string `json:"fingerprint,omitempty"` // use, remove
}

// SnapshotInfo says what a snapshot of the registry holds.
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

// MaxTokenGrace is the longest time that a queen without a leader may accept tokens that it has
// verified before.
const MaxTokenGrace = 30 * 24 * time.Hour

// Setting is a setting that all queens share. It is in the registry once somebody set it.
type Setting struct {
	Name    string `json:"name"`
	Value   string `json:"value"` // as text; empty where it is unset and each queen says what it is
	Set     bool   `json:"set"`   // somebody set it; otherwise value is the default
	Values  string `json:"values"`
	Doc     string `json:"doc"`
	Problem string `json:"problem,omitempty"` // why the queen that answers does not use it
}
