package fsm

import (
	"crypto/sha256"
	"net"
	"slices"
	"strconv"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
)

// The limits of a command; Validate enforces them before the command is logged. They bound one
// entry of the log, not the registry.
const (
	MaxIDBytes         = 128     // ids, states and other names
	MaxNameBytes       = 255     // names of nodes, tokens and clusters
	MaxTextBytes       = 1 << 10 // models, digests, device names and problems
	MaxWorkers         = 4096    // per hive
	MaxDevices         = 256     // per hive
	MaxWorkerTypes     = 256     // per hive
	MaxHivesPerCommand = 512
	MaxBlobBytes       = 64 << 10 // certificates and sealed keys
	MaxCommandBytes    = 4 << 20  // encoded

	// commandOverhead bounds a command's bytes beside the state of one hive.
	commandOverhead = 4 << 10
)

// Validate returns an error if a command must not be logged. Apply of this version never panics at
// a valid command. Errors: Invalid, TooLarge.
func Validate(c *raftv1.Command) error {
	v := &validator{}
	v.text("request id", c.GetRequestId(), MaxIDBytes)
	switch op := c.GetOp().(type) {
	case *raftv1.Command_SyncHive:
		v.syncHive(op.SyncHive)
	case *raftv1.Command_SyncHives:
		v.syncHives(op.SyncHives)
	case *raftv1.Command_SetHiveStatus:
		v.id("hive id", op.SetHiveStatus.GetHive())
		oneOf(v, "hive status", op.SetHiveStatus.GetStatus(), core.HiveReady, core.HiveSuspect, core.HiveDown)
	case *raftv1.Command_SetHiveDraining:
		v.id("hive id", op.SetHiveDraining.GetHive())
	case *raftv1.Command_RetireWorker:
		v.id("worker id", op.RetireWorker.GetWorker())
		v.text("hive id", op.RetireWorker.GetHive(), MaxIDBytes)
	case *raftv1.Command_RemoveHive:
		v.id("hive id", op.RemoveHive.GetHive())
	case *raftv1.Command_InitCluster:
		v.initCluster(op.InitCluster)
	case *raftv1.Command_PutNode:
		v.node(op.PutNode.GetNode())
		v.text("join token id", op.PutNode.GetJoinToken(), MaxIDBytes)
	case *raftv1.Command_RevokeNode:
		v.id("node id", op.RevokeNode.GetNode())
	case *raftv1.Command_RemoveNode:
		v.id("node id", op.RemoveNode.GetNode())
	case *raftv1.Command_PutToken:
		v.token(op.PutToken.GetToken())
	case *raftv1.Command_DeleteToken:
		v.id("token id", op.DeleteToken.GetToken())
	case *raftv1.Command_SetKeyring:
		v.blob("sealed gossip keys", op.SetKeyring.GetSealedKeys(), 1, MaxBlobBytes)
	case *raftv1.Command_ClaimStart:
		v.claimStart(op.ClaimStart)
	case *raftv1.Command_RotateToken:
		v.id("token id", op.RotateToken.GetToken())
		v.hash("token secret hash", op.RotateToken.GetSecretHash())
		v.number("overlap of the secrets in seconds", op.RotateToken.GetOverlapSeconds(), maxTTLSeconds)
	case *raftv1.Command_EndOverlap:
		v.id("token id", op.EndOverlap.GetToken())
		v.hash("former secret hash", op.EndOverlap.GetPreviousSecretHash())
	case *raftv1.Command_TouchTokens:
		v.uses(op.TouchTokens.GetUses())
	case *raftv1.Command_PutAlias:
		a := op.PutAlias.GetAlias()
		v.some("alias", a.GetName(), MaxNameBytes)
		v.some("model", a.GetModel(), MaxTextBytes)
		if a.GetCreateIndex() != 0 || a.GetModifyIndex() != 0 {
			v.fail(core.Invalid, "the alias %s claims what only the registry knows", a.GetName())
		}
	case *raftv1.Command_DeleteAlias:
		v.some("alias", op.DeleteAlias.GetName(), MaxNameBytes)
	case *raftv1.Command_PutDeployments:
		v.specs(op.PutDeployments.GetSpecs())
	case *raftv1.Command_StopDeployment:
		v.id("deployment", op.StopDeployment.GetName())
	case *raftv1.Command_PlaceReplicas:
		v.replicas(op.PlaceReplicas)
	case *raftv1.Command_PutSetting:
		v.id("setting", op.PutSetting.GetName())
		v.text("value of the setting", op.PutSetting.GetValue(), MaxTextBytes)
	default:
		v.fail(core.Invalid, "the command has no operation")
	}
	if size := proto.Size(c); size > MaxCommandBytes {
		v.fail(core.TooLarge, "the command has %d bytes, at most %d are allowed", size, MaxCommandBytes)
	}
	return v.err
}

// validator keeps the first error.
type validator struct{ err error }

func (v *validator) fail(kind core.Kind, format string, args ...any) {
	if v.err == nil {
		v.err = core.Errorf(kind, "check raft command: "+format, args...)
	}
}

func (v *validator) text(what, s string, limit int) {
	switch {
	case len(s) > limit:
		v.fail(core.Invalid, "%s has %d bytes, at most %d are allowed", what, len(s), limit)
	case !utf8.ValidString(s):
		v.fail(core.Invalid, "%s is not valid UTF-8", what)
	default:
		for _, r := range s {
			if unicode.IsControl(r) {
				v.fail(core.Invalid, "%s %q has a control character", what, s)
				return
			}
		}
	}
}

func (v *validator) id(what, s string) { v.some(what, s, MaxIDBytes) }

func (v *validator) some(what, s string, limit int) {
	if s == "" {
		v.fail(core.Invalid, "%s is empty", what)
	}
	v.text(what, s, limit)
}

func oneOf[T ~string](v *validator, what, s string, allowed ...T) {
	if !slices.Contains(allowed, T(s)) {
		v.fail(core.Invalid, "%s %q is not one of %q", what, s, allowed)
	}
}

// set requires a list of known names, each once.
func set[T ~string](v *validator, what string, list []string, atLeast int, allowed ...T) {
	if len(list) < atLeast {
		v.fail(core.Invalid, "%s is missing", what)
	}
	for i, s := range list {
		oneOf(v, what, s, allowed...)
		if slices.Contains(list[:i], s) {
			v.fail(core.Invalid, "%s %q appears twice", what, s)
		}
		if v.err != nil {
			return
		}
	}
}

func (v *validator) blob(what string, data []byte, atLeast, atMost int) {
	switch n := len(data); {
	case n < atLeast:
		v.fail(core.Invalid, "%s: %d bytes are too few", what, n)
	case n > atMost:
		v.fail(core.TooLarge, "%s: %d bytes, at most %d are allowed", what, n, atMost)
	}
}

func (v *validator) hash(what string, data []byte) {
	if len(data) != sha256.Size {
		v.fail(core.Invalid, "%s has %d bytes, not %d", what, len(data), sha256.Size)
	}
}

func (v *validator) number(what string, n, limit int64) {
	if n < 0 || n > limit {
		v.fail(core.Invalid, "%s is %d, not within 0 to %d", what, n, limit)
	}
}

// address requires host:port or an empty string.
func (v *validator) address(what, s string) {
	v.text(what, s, MaxTextBytes)
	if s == "" || v.err != nil {
		return
	}
	host, port, err := net.SplitHostPort(s)
	if n, e := strconv.ParseUint(port, 10, 16); err != nil || e != nil || host == "" || n == 0 {
		v.fail(core.Invalid, "%s %q is not host:port", what, s)
	}
}

func (v *validator) initCluster(op *raftv1.InitCluster) {
	c := op.GetCluster()
	v.id("cluster id", c.GetId())
	v.text("cluster name", c.GetName(), MaxNameBytes)
	v.blob("CA certificates", c.GetCaCertificates(), 0, MaxBlobBytes)
	v.blob("sealed CA key", c.GetSealedCaKey(), 0, MaxBlobBytes)
	v.blob("sealed gossip keys", c.GetSealedGossipKeys(), 0, MaxBlobBytes)
	if op.GetToken() != nil {
		v.token(op.GetToken())
	}
	if op.GetNode() != nil {
		v.node(op.GetNode())
	}
}

func (v *validator) node(n *raftv1.Node) {
	v.id("node id", n.GetId())
	v.some("node name", n.GetName(), MaxNameBytes)
	set(v, "node role", n.GetRoles(), 1, core.RoleQueen, core.RoleHive)
	v.address("node address", n.GetRpcAddress())
	v.hash("node key hash", n.GetKeyHash())
	v.number("end of the node's certificate", n.GetCertificateExpiresUnix(), maxSeconds)
	if n.GetRevoked() {
		v.fail(core.Invalid, "node %s is revoked: there is another command for that", n.GetId())
	}
}

func (v *validator) token(t *raftv1.Token) {
	v.id("token id", t.GetId())
	v.text("token name", t.GetName(), MaxNameBytes)
	oneOf(v, "token kind", t.GetKind(), core.TokenAPI, core.TokenJoin)
	v.hash("token secret hash", t.GetSecretHash())
	v.number("birth of the token", t.GetCreatedUnix(), maxSeconds)
	v.number("life of the token in seconds", t.GetTtlSeconds(), maxTTLSeconds)
	if t.GetUsedBy() != "" || len(t.GetUsedKeyHash()) > 0 || t.GetUsedUnix() != 0 {
		v.fail(core.Invalid, "token %s is used already", t.GetId())
	}
	if t.GetRotatedUnix() != 0 || len(t.GetPreviousSecretHash()) > 0 || t.GetOverlapSeconds() != 0 || t.GetLastUsedUnix() != 0 {
		v.fail(core.Invalid, "token %s was used or rotated already", t.GetId())
	}
	switch core.TokenKind(t.GetKind()) {
	case core.TokenAPI:
		set(v, "token scope", t.GetScopes(), 1, core.Scopes()...)
		set[core.Role](v, "role of an API token", t.GetRoles(), 0)
		v.bounds(t)
	case core.TokenJoin:
		if len(t.GetModels()) > 0 || len(t.GetLimits()) > 0 || t.GetPriority() != "" {
			v.fail(core.Invalid, "join token %s has models, limits or a priority", t.GetId())
		}
		set(v, "token role", t.GetRoles(), 1, core.RoleQueen, core.RoleHive)
		set[core.Scope](v, "scope of a join token", t.GetScopes(), 0)
	}
}

// bounds checks the limits on the use of an API token.
func (v *validator) bounds(t *raftv1.Token) {
	if len(t.GetModels()) > core.MaxTokenModels {
		v.fail(core.TooLarge, "token %s has %d models", t.GetId(), len(t.GetModels()))
	}
	for _, m := range t.GetModels() {
		v.some("model of a token", m, MaxTextBytes)
	}
	for _, l := range t.GetLimits() {
		v.number("window of a limit in seconds", l.GetPerSeconds(), maxTTLSeconds)
	}
	if err := core.CheckLimits(limitsFromProto(t.GetLimits())); err != nil {
		v.fail(core.Invalid, "token %s: %s", t.GetId(), err)
	}
	oneOf(v, "token priority", t.GetPriority(), core.PriorityLow, core.PriorityNormal, core.PriorityHigh)
}

func (v *validator) uses(uses []*raftv1.TokenUse) {
	if len(uses) == 0 || len(uses) > MaxTokenUses {
		v.fail(core.TooLarge, "%d uses of tokens", len(uses))
	}
	for _, use := range uses {
		v.id("token id", use.GetToken())
		v.number("use of a token", use.GetUsedUnix(), maxSeconds)
	}
}

func (v *validator) claimStart(op *raftv1.ClaimStart) {
	s := op.GetStart()
	v.some("model", s.GetModel(), MaxTextBytes)
	v.some("model on the hive", s.GetServed(), MaxTextBytes)
	v.id("hive id", s.GetHive())
	v.id("request id", s.GetRequest())
	v.text("previous request id", op.GetPrevious(), MaxIDBytes)
	if s.GetRequest() == op.GetPrevious() {
		v.fail(core.Invalid, "the start of %s replaces itself", s.GetModel())
	}
	if s.GetRegistered() || s.GetIndex() != 0 {
		v.fail(core.Invalid, "the start of %s claims what only the registry knows", s.GetModel())
	}
}

func (v *validator) syncHives(op *raftv1.SyncHives) {
	switch n := len(op.GetHives()); {
	case n == 0:
		v.fail(core.Invalid, "the command has no hives")
	case n > MaxHivesPerCommand:
		v.fail(core.TooLarge, "the command has %d hives, at most %d are allowed", n, MaxHivesPerCommand)
	}
	seen := make(map[string]bool, len(op.GetHives()))
	for _, h := range op.GetHives() {
		if v.err != nil {
			return
		}
		if id := h.GetHive().GetId(); seen[id] {
			// a repeated command would change the hive twice
			v.fail(core.Invalid, "hive %s appears twice", id)
		} else {
			seen[id] = true
		}
		v.syncHive(h)
	}
}

func (v *validator) syncHive(op *raftv1.SyncHive) {
	h := op.GetHive()
	if size := proto.Size(op); size > MaxCommandBytes-commandOverhead {
		v.fail(core.TooLarge, "hive %s has %d bytes, at most %d are allowed", h.GetId(), size, MaxCommandBytes-commandOverhead)
	}
	v.id("hive id", h.GetId())
	v.text("hive version", h.GetVersion(), MaxIDBytes)
	v.text("hive os", h.GetOs(), MaxIDBytes)
	v.text("hive arch", h.GetArch(), MaxIDBytes)
	v.text("hive name", h.GetName(), MaxTextBytes)
	oneOf(v, "hive status", h.GetStatus(), "", core.HiveReady, core.HiveSuspect)
	v.address("hive address", h.GetRpcAddress())
	if h.GetDraining() {
		v.fail(core.Invalid, "hive %s drains: there is another command for that", h.GetId())
	}
	if n := len(h.GetDevices()); n > MaxDevices {
		v.fail(core.TooLarge, "hive %s has %d devices, at most %d are allowed", h.GetId(), n, MaxDevices)
	}
	for _, d := range h.GetDevices() {
		v.id("device id", d.GetId())
		v.text("device kind", d.GetKind(), MaxIDBytes)
		v.text("device name", d.GetName(), MaxTextBytes)
		v.text("device problem", d.GetProblem(), MaxTextBytes)
		if d.GetTotalBytes() < 0 {
			v.fail(core.Invalid, "device %s has %d bytes of memory", d.GetId(), d.GetTotalBytes())
		}
	}
	if n := len(h.GetWorkerTypes()); n > MaxWorkerTypes {
		v.fail(core.TooLarge, "hive %s has %d worker types, at most %d are allowed", h.GetId(), n, MaxWorkerTypes)
	}
	for _, t := range h.GetWorkerTypes() {
		v.id("worker type", t)
	}
	if n := len(op.GetWorkers()); n > MaxWorkers {
		v.fail(core.TooLarge, "hive %s has %d workers, at most %d are allowed", h.GetId(), n, MaxWorkers)
	}
	seen := make(map[string]bool, len(op.GetWorkers()))
	for _, w := range op.GetWorkers() {
		if seen[w.GetId()] {
			v.fail(core.Invalid, "worker %s appears twice", w.GetId())
		}
		seen[w.GetId()] = true
		v.worker(h.GetId(), w)
	}
}

func (v *validator) worker(hive string, w *raftv1.Worker) {
	v.id("worker id", w.GetId())
	if w.GetHive() != hive {
		v.fail(core.Invalid, "worker %s is of hive %q, not of %q", w.GetId(), w.GetHive(), hive)
	}
	v.id("worker type", w.GetType())
	v.text("worker version", w.GetVersion(), MaxTextBytes)
	v.text("worker model", w.GetModel(), MaxTextBytes)
	v.text("worker model digest", w.GetModelDigest(), MaxTextBytes)
	v.text("worker device", w.GetDevice(), MaxIDBytes)
	v.text("worker nonce", w.GetNonce(), MaxIDBytes)
	v.text("worker replica", w.GetReplica(), MaxIDBytes)
	if w.GetSlots() < 0 || w.GetContextTokens() < 0 {
		v.fail(core.Invalid, "worker %s has %d slots of %d tokens", w.GetId(), w.GetSlots(), w.GetContextTokens())
	}
	if n := len(w.GetCapabilities()); n > core.MaxCapabilities {
		v.fail(core.Invalid, "worker %s has %d capabilities, at most %d are allowed", w.GetId(), n, core.MaxCapabilities)
	}
	for _, c := range w.GetCapabilities() {
		if !core.ValidCapability(c) {
			v.fail(core.Invalid, "worker %s has a malformed capability", w.GetId())
		}
	}
	oneOf(v, "worker state", w.GetState(), core.WorkerLoading, core.WorkerReady, core.WorkerRetiring, core.WorkerFailed)
}
