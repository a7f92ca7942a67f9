package fsm

import (
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/state"
)

// Version is the state machine version of this build: it applies commands whose min_fsm is at most
// this, and reads snapshots that need no more. A release that adds features increases it; see
// features.
const Version = 3

// Feature is something that commands or the state may use and that older state machine versions do
// not know.
type Feature struct {
	Name  string // for people, in messages about the features that an older queen lacks
	Since uint32 // the first version that knows it, 2 or more
	// Fields lists fields of messages of proto/raft/v1, as Message.field. A command or a snapshot
	// that has one of them set needs the feature. A field of Command marks an operation that is new
	// or has a new effect; a field of SnapshotRecord marks a kind of row.
	Fields []string
	// State reports whether a state needs the feature although no field shows it. It may be nil if
	// a field always shows it.
	State func(*state.Snapshot) bool
	// Optional reports that a command still applies without the fields. They are omitted while an
	// older queen lives.
	Optional bool
}

// features is the table that defines how the registry evolves: Required, the header of a snapshot
// and the tests derive from it. It must list every field that is not in testdata/fields.txt, which
// has those of versions 1 and 2. See contributing/add-a-raft-command.md.
var features = []Feature{
	{Name: "batches of reports", Since: 2, Fields: []string{"Command.sync_hives"}},
	{Name: "addresses of hives", Since: 2, Fields: []string{"Hive.rpc_address"}},
	{Name: "drained hives", Since: 2, Fields: []string{"Command.set_hive_draining", "Hive.draining"}},
	{Name: "lasting retirement", Since: 2, Fields: []string{"Command.retire_worker", "SnapshotRecord.retire_intent"}},
	{Name: "tombstones of hives", Since: 2, Fields: []string{"Command.remove_hive", "SnapshotRecord.tombstone"}},
	{Name: "clusters with certificates", Since: 2, Fields: []string{
		"Command.init_cluster", "Command.set_keyring", "SnapshotRecord.cluster",
		"Command.put_node", "Command.revoke_node", "Command.remove_node", "SnapshotRecord.node",
	}},
	{Name: "tokens", Since: 2, Fields: []string{"Command.put_token", "Command.delete_token", "SnapshotRecord.token"}},
	{Name: "join tokens that are bound to their first use", Since: 3, Fields: []string{"PutNode.bind_token", "Token.used_unix"}},
	{Name: "worker ids that are each hive's own", Since: 3, Fields: []string{"SyncHive.own_ids", "RetireWorker.hive"}, State: sharedWorkerIDs, Optional: true},
	{Name: "nodes that keep their roles", Since: 3, Fields: []string{"PutNode.keep_roles"}, Optional: true},
	{Name: "capabilities of workers", Since: 3, Fields: []string{"Worker.capabilities"}, Optional: true},
	{Name: "remembered revocations", Since: 3, Optional: true, Fields: []string{
		"DeleteToken.revoked", "SnapshotRecord.revoked_token", "RevokedToken.token", "RevokedToken.index",
	}},
	{Name: "starts that are decided once", Since: 3, Fields: []string{
		"Command.claim_start", "ClaimStart.start", "ClaimStart.previous", "SnapshotRecord.start",
		"Start.model", "Start.hive", "Start.served", "Start.request", "Start.registered", "Start.index",
	}},
	{Name: "aliases of models", Since: 3, Fields: []string{
		"Command.put_alias", "PutAlias.alias", "Command.delete_alias", "DeleteAlias.name", "SnapshotRecord.alias",
		"Alias.name", "Alias.model", "Alias.create_index", "Alias.modify_index",
	}},
	// Not optional: an older queen would accept such a token for everything, without a limit.
	{Name: "tokens with models, limits and priorities", Since: 3, Fields: []string{
		"Token.models", "Token.limits", "Token.priority", "Limit.of", "Limit.count", "Limit.per_seconds",
	}},
	{Name: "tokens with new secrets", Since: 3, Fields: []string{
		"Command.rotate_token", "RotateToken.token", "RotateToken.secret_hash", "RotateToken.overlap_seconds",
		"Command.end_overlap", "EndOverlap.token", "EndOverlap.previous_secret_hash",
		"Token.rotated_unix", "Token.previous_secret_hash", "Token.overlap_seconds",
	}},
	{Name: "the last use of tokens", Since: 3, Fields: []string{
		"Command.touch_tokens", "TouchTokens.uses", "TokenUse.token", "TokenUse.used_unix", "Token.last_used_unix",
	}},
	{Name: "deployments", Since: 3, Fields: []string{
		"Command.put_deployments", "PutDeployments.specs", "PutDeployments.expected_index",
		"Command.stop_deployment", "StopDeployment.name",
		"Command.place_replicas", "PlaceReplicas.name", "PlaceReplicas.expected_index", "PlaceReplicas.replicas",
		"DeploymentSpec.name", "DeploymentSpec.model", "DeploymentSpec.replicas", "DeploymentSpec.type", "DeploymentSpec.devices",
		"DeploymentSpec.hives", "DeploymentSpec.slots", "DeploymentSpec.context_tokens", "DeploymentSpec.priority",
		"SnapshotRecord.deployment", "Deployment.spec", "Deployment.version", "Deployment.start_version", "Deployment.stopped",
		"Deployment.changed_unix", "Deployment.replicas", "Deployment.history", "Deployment.spec_index", "Deployment.create_index", "Deployment.modify_index",
		"DeploymentVersion.version", "DeploymentVersion.spec", "DeploymentVersion.stopped", "DeploymentVersion.changed_unix",
		"Replica.ordinal", "Replica.version", "Replica.hive", "Replica.device", "Replica.index",
	}},
	{Name: "workers of deployments", Since: 3, Fields: []string{"Worker.replica"}, Optional: true},
	// One row for all settings: older queens keep the names of newer settings without reading them.
	{Name: "settings of the cluster", Since: 3, Fields: []string{
		"Command.put_setting", "PutSetting.name", "PutSetting.value", "PutSetting.unset",
		"SnapshotRecord.setting", "Setting.name", "Setting.value", "Setting.index",
	}},
}

// Table lists the features that a build of some version knows. Its methods may be called
// concurrently.
type Table struct {
	version  uint32
	features []Feature
	plans    map[protoreflect.FullName]*plan
}

// plan tells which fields of a message to check.
type plan struct {
	own    []sinceField // fields in the table
	nested []sinceField // messages with such fields inside; since is the highest
	max    uint32       // highest version of these; 0: none
}

type sinceField struct {
	protoreflect.FieldDescriptor
	since    uint32
	optional bool
}

// current is the table of this build.
var current = NewTable(Version, features)

// Features returns the table of this build.
func Features() []Feature { return slices.Clone(features) }

// NewTable returns the table of a build of a version with these features. Like such a build, it
// ignores features newer than the version: this lets tests run old and new builds in one process.
// It panics at a field that does not exist.
func NewTable(version uint32, list []Feature) *Table {
	t := &Table{version: version, features: list, plans: map[protoreflect.FullName]*plan{}}
	rows := map[protoreflect.FullName]sinceField{}
	for _, f := range list {
		for _, name := range f.Fields {
			full := raftv1.File_raft_v1_raft_proto.Package() + "." + protoreflect.FullName(name)
			if f.Since > rows[full].since { // a later feature may extend the field's meaning
				rows[full] = sinceField{since: f.Since, optional: f.Optional}
			}
		}
	}
	found := map[protoreflect.FullName]bool{}
	t.makePlan((&raftv1.Command{}).ProtoReflect().Descriptor(), rows, found)
	t.makePlan((&raftv1.SnapshotRecord{}).ProtoReflect().Descriptor(), rows, found)
	for name := range rows {
		if !found[name] {
			panic("no command or snapshot record has a field " + string(name))
		}
	}
	return t
}

func (t *Table) makePlan(m protoreflect.MessageDescriptor, rows map[protoreflect.FullName]sinceField, found map[protoreflect.FullName]bool) *plan {
	if p, ok := t.plans[m.FullName()]; ok {
		return p
	}
	p := &plan{}
	t.plans[m.FullName()] = p
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		if row, ok := rows[f.FullName()]; ok {
			found[f.FullName()] = true
			p.own = append(p.own, sinceField{f, row.since, row.optional})
			p.max = max(p.max, row.since)
		}
		if f.Message() == nil {
			continue
		}
		if within := t.makePlan(f.Message(), rows, found).max; within > 0 {
			p.nested = append(p.nested, sinceField{FieldDescriptor: f, since: within})
			p.max = max(p.max, within)
		}
	}
	return p
}

// needs returns the version that a message needs, at least atLeast.
func (t *Table) needs(m protoreflect.Message, atLeast uint32) uint32 {
	p := t.plans[m.Descriptor().FullName()]
	if p.max <= atLeast {
		return atLeast
	}
	for _, f := range p.own {
		if f.since > atLeast && m.Has(f.FieldDescriptor) {
			atLeast = f.since
		}
	}
	eachNested(p, m, func(f sinceField, within protoreflect.Message) {
		if f.since > atLeast {
			atLeast = t.needs(within, atLeast)
		}
	})
	return atLeast
}

// strip clears the fields that are newer than the version; with optional, only those that a command
// can omit.
func (t *Table) strip(m protoreflect.Message, version uint32, optional bool) {
	p := t.plans[m.Descriptor().FullName()]
	if p.max <= version {
		return
	}
	for _, f := range p.own {
		if f.since > version && (f.optional || !optional) {
			m.Clear(f.FieldDescriptor)
		}
	}
	eachNested(p, m, func(_ sinceField, within protoreflect.Message) { t.strip(within, version, optional) })
}

func eachNested(p *plan, m protoreflect.Message, visit func(sinceField, protoreflect.Message)) {
	for _, f := range p.nested {
		switch {
		case !m.Has(f.FieldDescriptor):
		case f.IsList():
			list := m.Get(f.FieldDescriptor).List()
			for i := range list.Len() {
				visit(f, list.Get(i).Message())
			}
		default:
			visit(f, m.Get(f.FieldDescriptor).Message())
		}
	}
}

// Required returns the state machine version that a command needs. It is stamped as min_fsm, and
// determines which version's rules apply the command: this version applies an entry of the log in
// the same way as the older one did.
func (t *Table) Required(c *raftv1.Command) uint32 { return t.needs(c.ProtoReflect(), 1) }

// Fit removes from a command the optional fields that queens of a version do not know. Required
// returns what it still needs.
func (t *Table) Fit(c *raftv1.Command, version uint32) {
	t.strip(c.ProtoReflect(), version, true)
}

// Knows reports whether queens of a version know a field, such as Worker.capabilities. Version 0
// stands for no queen and knows all.
func Knows(version uint32, field string) bool {
	return version == 0 || !slices.ContainsFunc(features, func(f Feature) bool { return f.Since > version && slices.Contains(f.Fields, field) })
}

// Missing names the features of a command that queens of a version lack.
func (t *Table) Missing(c *raftv1.Command, version uint32) []string {
	var names []string
	for _, f := range t.features {
		if f.Since > version && NewTable(f.Since, []Feature{f}).Required(c) == f.Since {
			names = append(names, f.Name)
		}
	}
	return names
}

// stateNeeds returns the version needed to read a state: by its contents, not by what the build
// could write.
func (t *Table) stateNeeds(s *state.Snapshot) uint32 {
	version := uint32(1)
	for _, f := range t.features {
		if f.Since > version && f.State != nil && f.State(s) {
			version = f.Since
		}
	}
	for _, kind := range recordKinds {
		if most := t.kindMax(kind.field); most > version {
			kind.each(s, func(r *raftv1.SnapshotRecord) bool {
				version = t.needs(r.ProtoReflect(), version)
				return version < most
			})
		}
	}
	return version
}

// kindMax returns the highest version that a record of a kind may need.
func (t *Table) kindMax(kind protoreflect.Name) uint32 {
	p, highest := t.plans[(&raftv1.SnapshotRecord{}).ProtoReflect().Descriptor().FullName()], uint32(0)
	for _, f := range slices.Concat(p.own, p.nested) {
		if f.Name() == kind {
			highest = max(highest, f.since)
		}
	}
	return highest
}

// known returns a copy of a message without the fields that the version does not know, as a build
// of that version reads it.
func known[M proto.Message](t *Table, m M) M {
	if t.plans[m.ProtoReflect().Descriptor().FullName()].max > t.version {
		m = proto.CloneOf(m)
		t.strip(m.ProtoReflect(), t.version, false)
	}
	return m
}

// Required calls Table.Required of this build.
func Required(c *raftv1.Command) uint32 { return current.Required(c) }
