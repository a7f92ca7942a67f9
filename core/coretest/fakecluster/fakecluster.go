// Package fakecluster is a cluster that exists only in memory: it stands in for a queen towards its
// consumers (core/gateway, the command line), without raft, hives and certificates. It answers
// every read-only operation, even a newly registered one, and records the changes it was asked for.
package fakecluster

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/modelname"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/setting"
	"github.com/rbee-project/rbee/core/token"
)

// State is the contents of a fake cluster.
type State struct {
	Status    core.Status // its lists are the fields below
	Hives     []core.Hive // the first is core.LocalHive
	Workers   []core.Worker
	Models    []core.Model
	Aliases   []core.Alias
	Processes []core.Process
	Binaries  []core.WorkerBinary
	Items     []core.CatalogItem
	Health    core.HiveHealth    // for any hive
	Refreshed core.RefreshResult // for any hive

	Queens []core.Queen
	Nodes  []core.Node
	Tokens []core.Token
	Keys   []string // fingerprints, the primary first

	Settings map[string]string // settings of the cluster that were set; replaced, never changed

	Secrets map[string]core.Token // tokens besides Tokens, by their arbitrary texts
	Lookups int                   // calls of Authorize

	NotReady error                    // error of Ready
	NoLeader error                    // error of every read but a stale one
	Silent   bool                     // no leader answers: reads that need one time out
	NoTokens error                    // error of every Authorize
	Refuse   func(asked string) error // refuses what would go to Asked; nil: nothing
	Snapshot func(w io.Writer) error  // nil: "snapshot"
	Restored []byte                   // the last restored snapshot
	Asked    []string                 // requests of administrators, in order
	Reads    []core.Consistency       // argument of every Sync
}

// Cluster is a fake cluster. It is safe for concurrent use.
type Cluster struct {
	// Answers holds the functions of the read-only operations. A test may replace them before it
	// serves the cluster.
	Answers operation.Answers

	mu sync.Mutex // guards below
	s  State
}

// New returns a cluster with the state s.
func New(s State) *Cluster {
	c := &Cluster{s: s, Answers: operation.Answers{}}
	a := c.Answers
	operation.Answer(a, operation.HiveList, func(context.Context, core.Request) ([]core.Hive, error) { return c.State().Hives, nil })
	operation.Answer(a, operation.HiveGet, func(_ context.Context, r core.Request) (core.Hive, error) { return c.hive(r.Hive) })
	operation.Answer(a, operation.HiveStatus, func(_ context.Context, r core.Request) (core.HiveHealth, error) {
		health := c.State().Health
		var err error
		health.Hive, err = c.hive(r.Hive)
		return health, err
	})
	operation.Answer(a, operation.HiveRefreshCapabilities, func(_ context.Context, r core.Request) (core.RefreshResult, error) {
		_, err := c.hive(r.Hive)
		return c.State().Refreshed, cmp.Or(err, c.ask("refresh %s", r.Hive))
	})
	operation.Answer(a, operation.ActiveWorkerList, func(ctx context.Context, _ core.Request) ([]core.Worker, error) { return c.Workers(ctx) })
	operation.Answer(a, operation.ActiveWorkerGet, func(_ context.Context, r core.Request) (core.Worker, error) {
		return find(c.State().Workers, func(w core.Worker) bool { return strings.HasPrefix(w.ID, r.Worker) }, "no worker %q", r.Worker)
	})
	operation.Answer(a, operation.ModelList, func(ctx context.Context, r core.Request) ([]core.Model, error) {
		if r.Hive != "" {
			if _, err := c.hive(r.Hive); err != nil {
				return nil, err
			}
		}
		return c.Models(ctx)
	})
	operation.Answer(a, operation.ModelGet, func(_ context.Context, r core.Request) (core.Model, error) {
		return c.Model(r.Model)
	})
	operation.Answer(a, operation.AliasList, func(context.Context, core.Request) ([]core.Alias, error) { return c.State().Aliases, nil })
	operation.Answer(a, operation.WorkerProcessList, func(_ context.Context, r core.Request) ([]core.Process, error) {
		_, err := c.hive(r.Hive)
		return c.State().Processes, err
	})
	operation.Answer(a, operation.WorkerProcessGet, func(_ context.Context, r core.Request) (core.Process, error) {
		return find(c.State().Processes, func(p core.Process) bool { return p.PID == r.PID }, "process %d is not a worker of this hive", r.PID)
	})
	operation.Answer(a, operation.WorkerBinaryList, func(_ context.Context, r core.Request) ([]core.WorkerBinary, error) {
		_, err := c.hive(r.Hive)
		return c.State().Binaries, err
	})
	operation.Answer(a, operation.WorkerBinaryGet, func(_ context.Context, r core.Request) (core.WorkerBinary, error) {
		return find(c.State().Binaries, func(b core.WorkerBinary) bool { return b.ID == r.Binary || b.Type == r.Binary }, "no worker binary %q", r.Binary)
	})
	operation.Answer(a, operation.CatalogSearch, func(_ context.Context, r core.Request) ([]core.CatalogItem, error) {
		return slices.DeleteFunc(c.State().Items, func(i core.CatalogItem) bool { return !strings.Contains(i.Name, r.Text) }), nil
	})
	operation.Answer(a, operation.SettingList, func(context.Context, core.Request) ([]core.Setting, error) { return c.settings(), nil })
	operation.Answer(a, operation.Status, func(ctx context.Context, _ core.Request) (core.Status, error) { return c.Status(ctx) })
	return c
}

func find[T any](list []T, is func(T) bool, missing string, args ...any) (T, error) {
	if i := slices.IndexFunc(list, is); i >= 0 {
		return list[i], nil
	}
	var none T
	return none, core.Errorf(core.NotFound, missing, args...).Hint("See the list.")
}

// State returns a copy of the cluster's state. Its lists may be changed, their elements not.
func (c *Cluster) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.s
	s.Hives, s.Workers, s.Models, s.Processes = slices.Clone(s.Hives), slices.Clone(s.Workers), slices.Clone(s.Models), slices.Clone(s.Processes)
	s.Aliases = slices.Clone(s.Aliases)
	s.Binaries, s.Items, s.Queens, s.Nodes = slices.Clone(s.Binaries), slices.Clone(s.Items), slices.Clone(s.Queens), slices.Clone(s.Nodes)
	s.Tokens, s.Keys, s.Asked, s.Reads = slices.Clone(s.Tokens), slices.Clone(s.Keys), slices.Clone(s.Asked), slices.Clone(s.Reads)
	return s
}

// Change changes the cluster's state.
func (c *Cluster) Change(f func(s *State)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.s)
}

// ask records an administrator's request, and returns the error if it is refused.
func (c *Cluster) ask(format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	c.mu.Lock()
	c.s.Asked = append(c.s.Asked, what)
	refuse := c.s.Refuse
	c.mu.Unlock()
	if refuse == nil {
		return nil
	}
	return refuse(what)
}

func (c *Cluster) hive(name string) (core.Hive, error) {
	hives := c.State().Hives
	if i := slices.IndexFunc(hives, func(h core.Hive) bool { return h.ID == name || h.Name == name }); i >= 0 {
		return hives[i], nil
	}
	if name == core.LocalHive && len(hives) > 0 {
		return hives[0], nil
	}
	var names []string
	for _, h := range hives {
		names = append(names, cmp.Or(h.Name, h.ID))
	}
	return core.Hive{}, core.Errorf(core.NotFound, "no hive %q", name).Hint("Did you mean %s?", strings.Join(names, " or "))
}

func (c *Cluster) settings() []core.Setting {
	set := c.State().Settings
	var list []core.Setting
	for _, s := range setting.All() {
		v := core.Setting{Name: s.Name, Value: s.Default, Values: s.Values, Doc: s.Doc}
		if text, ok := set[s.Name]; ok {
			v.Value, v.Set = text, true
		}
		list = append(list, v)
	}
	return list
}

// SetSetting runs the operation setting_set.
func (c *Cluster) SetSetting(r core.Request) (core.Setting, error) {
	s, err := setting.Find(r.Setting)
	if err == nil && !r.Unset {
		err = s.Check(r.Value)
	}
	if err != nil {
		return core.Setting{}, err
	}
	c.Change(func(state *State) {
		set := maps.Clone(state.Settings)
		if set == nil {
			set = map[string]string{}
		}
		if set[s.Name] = r.Value; r.Unset {
			delete(set, s.Name)
		}
		state.Settings = set
	})
	return find(c.settings(), func(v core.Setting) bool { return v.Name == s.Name }, "no setting %q", s.Name)
}

// Answer implements operation.Answerer. An operation that the fake does not know has an empty
// result.
func (c *Cluster) Answer(ctx context.Context, r core.Request) (any, error) {
	if err := operation.Check(r); err != nil {
		return nil, err
	}
	if answer, ok := c.Answers[r.Operation]; ok {
		return answer(ctx, r)
	}
	s, err := operation.Find(r.Operation)
	if err == nil && s.AsksHive {
		_, err = c.hive(r.Hive)
	}
	return s.Zero(), err
}

// Ready implements gateway.Cluster.
func (c *Cluster) Ready(context.Context) error { return c.State().NotReady }

// Status implements gateway.Cluster.
func (c *Cluster) Status(context.Context) (core.Status, error) {
	s := c.State()
	s.Status.Queens, s.Status.Hives, s.Status.Workers, s.Status.Models = s.Queens, s.Hives, s.Workers, s.Models
	s.Status.Settings = slices.DeleteFunc(c.settings(), func(v core.Setting) bool { return !v.Set })
	return s.Status, nil
}

// Workers implements gateway.Cluster.
func (c *Cluster) Workers(context.Context) ([]core.Worker, error) { return c.State().Workers, nil }

// Model finds a model by any of its names.
func (c *Cluster) Model(name string) (core.Model, error) {
	s := c.State()
	id, ok, err := modelname.Resolve(name, s.Models, s.Aliases)
	if err != nil {
		return core.Model{}, err
	}
	if !ok {
		return core.Model{}, core.Errorf(core.NotFound, "no model %q", name).Hint("%sSee the list.", core.NearestHint(name, modelname.All(s.Models, s.Aliases)))
	}
	return find(s.Models, func(m core.Model) bool { return m.ID == id }, "no model %q", name)
}

// Models implements gateway.Cluster.
func (c *Cluster) Models(context.Context) ([]core.Model, error) {
	s := c.State()
	for i := range s.Models {
		m := &s.Models[i]
		for _, w := range s.Workers {
			if w.Model == m.ID && w.State == core.WorkerReady {
				m.State, m.LoadedBy = core.ModelLoaded, append(slices.Clone(m.LoadedBy), w.ID)
			}
		}
	}
	return s.Models, nil
}

// Sync implements gateway.Reader. The index is 42.
func (c *Cluster) Sync(ctx context.Context, want core.Consistency) (core.ReadInfo, error) {
	c.Change(func(s *State) { s.Reads = append(s.Reads, want) })
	s := c.State()
	leader := ""
	for _, q := range s.Queens {
		if q.Leader {
			leader = q.ID
		}
	}
	switch {
	case want == core.ConsistencyStale && s.NoLeader != nil:
		return core.ReadInfo{Index: 42, LastContact: core.Duration(3 * time.Second), Stale: true}, nil //nolint:nilerr // a stale read needs no leader
	case want == core.ConsistencyStale:
		return core.ReadInfo{Index: 42, Leader: leader, LastContact: core.Duration(20 * time.Millisecond), Stale: true}, nil
	case s.Silent:
		<-ctx.Done()
		return core.ReadInfo{}, ctx.Err()
	case s.NoLeader != nil:
		return core.ReadInfo{}, s.NoLeader
	}
	return core.ReadInfo{Index: 42, Leader: leader}, nil
}

// Authorize implements gateway.Authorizer with the tokens of the cluster. Its errors repeat the
// text, which callers must not repeat.
func (c *Cluster) Authorize(_ context.Context, text string, scope core.Scope) (core.Token, error) {
	c.mu.Lock()
	c.s.Lookups++
	t, known := c.s.Secrets[text]
	refuse := c.s.NoTokens
	c.mu.Unlock()
	if p, err := token.Parse(text); !known && err == nil {
		tokens := c.State().Tokens
		i := slices.IndexFunc(tokens, func(t core.Token) bool { return t.ID == p.ID && p.Matches(t.SecretHash) })
		if known = i >= 0; known {
			t = tokens[i]
		}
	}
	switch {
	case refuse != nil:
		return core.Token{}, refuse
	case !known || t.Kind != core.TokenAPI:
		return core.Token{}, core.Errorf(core.Unauthenticated, "unknown token %s", text).Hint("What is %s?", text)
	case scope != core.ScopeAny && !t.Allows(scope):
		return core.Token{}, core.Errorf(core.Forbidden, "%s may not %s", text, scope)
	}
	return t, nil
}

// Queens implements gateway.Admin, as do the methods below.
func (c *Cluster) Queens(context.Context) ([]core.Queen, error) {
	return c.State().Queens, c.ask("queens")
}

// RemoveQueen records "remove ID".
func (c *Cluster) RemoveQueen(_ context.Context, id string) error {
	err := c.ask("remove %s", id)
	if err == nil {
		c.Change(func(s *State) {
			s.Queens = slices.DeleteFunc(slices.Clone(s.Queens), func(q core.Queen) bool { return q.RaftID == id })
		})
	}
	return err
}

// TransferLeadership records `transfer to "NAME"`. Without a name, the first voter other than the
// leader becomes the leader.
func (c *Cluster) TransferLeadership(_ context.Context, to string) error {
	err := c.ask("transfer to %q", to)
	if err == nil {
		c.Change(func(s *State) {
			s.Queens = slices.Clone(s.Queens)
			next := slices.IndexFunc(s.Queens, func(q core.Queen) bool { return q.Name == to || to == "" && q.Voter && !q.Leader })
			for i := range s.Queens {
				s.Queens[i].Leader = i == next
			}
		})
	}
	return err
}

// Nodes records "nodes".
func (c *Cluster) Nodes(context.Context) ([]core.Node, error) {
	return c.State().Nodes, c.ask("nodes")
}

func (c *Cluster) node(id string) core.Node {
	n, err := find(c.State().Nodes, func(n core.Node) bool { return n.ID == id }, "no node %q", id)
	if err != nil {
		return core.Node{ID: id}
	}
	return n
}

// RevokeNode records "revoke node ID".
func (c *Cluster) RevokeNode(_ context.Context, id string) (core.Node, error) {
	err := c.ask("revoke node %s", id)
	c.Change(func(s *State) {
		s.Nodes = slices.Clone(s.Nodes)
		for i := range s.Nodes {
			s.Nodes[i].Revoked = s.Nodes[i].Revoked || s.Nodes[i].ID == id && err == nil
		}
	})
	return c.node(id), err
}

// LeaveNode records "leave ID".
func (c *Cluster) LeaveNode(_ context.Context, id string) (core.Node, error) {
	return c.node(id), c.ask("leave %s", id)
}

// Tokens records "tokens".
func (c *Cluster) Tokens(context.Context) ([]core.Token, error) {
	return c.State().Tokens, c.ask("tokens")
}

// CreateToken records "create token REQUEST". The token is a real one.
func (c *Cluster) CreateToken(_ context.Context, r core.TokenRequest) (core.NewToken, error) {
	if err := c.ask("create token %s", JSON(r)); err != nil {
		return core.NewToken{}, err
	}
	id, hash, text := token.New()
	if r.Kind == core.TokenJoin {
		id, hash, text = token.NewJoin(strings.Repeat("a", 52))
		r.TTL = cmp.Or(r.TTL, core.Duration(time.Hour))
	}
	t := core.Token{ID: id, Name: r.Name, Kind: r.Kind, SecretHash: hash, Scopes: r.Scopes, Roles: r.Roles, CreatedAt: time.Now(), TTL: r.TTL, Models: r.Models, Limits: r.Limits, Priority: r.Priority}
	c.Change(func(s *State) { s.Tokens = append(s.Tokens, t) })
	return core.NewToken{Token: t, Secret: text}, nil
}

// RotateToken records "rotate token ID REQUEST". The secret is a real one.
func (c *Cluster) RotateToken(_ context.Context, id string, r core.RotateRequest) (core.NewToken, error) {
	if err := c.ask("rotate token %s %s", id, JSON(r)); err != nil {
		return core.NewToken{}, err
	}
	t, err := find(c.State().Tokens, func(t core.Token) bool { return t.ID == id }, "no token %q", id)
	if err != nil {
		return core.NewToken{}, err
	}
	_, text := token.Renew(id)
	t.Overlap, t.RotatedAt = core.Duration(core.DefaultTokenOverlap), time.Now()
	if r.Overlap != nil {
		t.Overlap = *r.Overlap
	}
	return core.NewToken{Token: t, Secret: text}, nil
}

// RevokeToken records "revoke token ID".
func (c *Cluster) RevokeToken(_ context.Context, id string) (core.Token, error) {
	if err := c.ask("revoke token %s", id); err != nil {
		return core.Token{}, err
	}
	t, err := find(c.State().Tokens, func(t core.Token) bool { return t.ID == id }, "no token %q", id)
	c.Change(func(s *State) {
		s.Tokens = slices.DeleteFunc(slices.Clone(s.Tokens), func(t core.Token) bool { return t.ID == id })
	})
	return t, err
}

// DrainHive records "drain HIVE true" or "drain HIVE false".
func (c *Cluster) DrainHive(_ context.Context, hive string, drain bool) (core.Hive, error) {
	if err := c.ask("drain %s %t", hive, drain); err != nil {
		return core.Hive{}, err
	}
	h, err := c.hive(hive)
	c.Change(func(s *State) {
		s.Hives = slices.Clone(s.Hives)
		for i := range s.Hives {
			if s.Hives[i].ID == h.ID {
				s.Hives[i].Draining = drain
			}
		}
	})
	h.Draining = drain
	return h, err
}

// SaveSnapshot records "save".
func (c *Cluster) SaveSnapshot(_ context.Context, w io.Writer) error {
	if err := c.ask("save"); err != nil {
		return err
	}
	if save := c.State().Snapshot; save != nil {
		return save(w)
	}
	_, err := io.WriteString(w, "snapshot")
	return err
}

// RestoreSnapshot records "restore". The index is the number of bytes.
func (c *Cluster) RestoreSnapshot(_ context.Context, r io.Reader) (core.SnapshotInfo, error) {
	if err := c.ask("restore"); err != nil {
		return core.SnapshotInfo{}, err
	}
	b, err := io.ReadAll(r)
	c.Change(func(s *State) { s.Restored = b })
	return core.SnapshotInfo{Format: 1, FSM: 2, Index: uint64(len(b)), Cluster: "ccc"}, core.WithKind(err, core.Integrity)
}

// Keyring records "keyring".
func (c *Cluster) Keyring(context.Context) (core.Keyring, error) {
	return c.keyring(), c.ask("keyring")
}

func (c *Cluster) keyring() core.Keyring {
	keys := c.State().Keys
	if len(keys) == 0 {
		return core.Keyring{}
	}
	return core.Keyring{Primary: keys[0], Keys: keys}
}

// NewKey is the fingerprint of the key that ChangeKeyring installs.
const NewKey = "3333333333333333"

// ChangeKeyring records "keyring CHANGE".
func (c *Cluster) ChangeKeyring(_ context.Context, change core.KeyringChange) (core.Keyring, error) {
	err := c.ask("keyring %s", JSON(change))
	c.Change(func(s *State) {
		at := slices.Index(s.Keys, change.Fingerprint)
		switch {
		case err != nil:
		case change.Action == "install":
			s.Keys = append(s.Keys, NewKey)
		case at < 0:
			err = core.Errorf(core.NotFound, "no key %q", change.Fingerprint)
		case change.Action == "remove" && at == 0:
			err = core.Errorf(core.InUse, "the key is in use").Hint("Use another one first.")
		case change.Action == "remove":
			s.Keys = slices.Delete(slices.Clone(s.Keys), at, at+1)
		default:
			s.Keys = slices.Insert(slices.Delete(slices.Clone(s.Keys), at, at+1), 0, change.Fingerprint)
		}
	})
	return c.keyring(), err
}

// JSON returns v as JSON in one line.
func JSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
