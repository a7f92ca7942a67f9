package fsm

import (
	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
)

// MaxAliases bounds the aliases of the registry.
const MaxAliases = 4096

// PutAlias makes the command that sets an alias of the cluster for a model. The command omits the
// indexes. Result: TooLarge if the cluster has MaxAliases other aliases.
func PutAlias(a core.Alias) *raftv1.Command {
	a.CreateIndex, a.ModifyIndex = 0, 0
	return &raftv1.Command{Op: &raftv1.Command_PutAlias{PutAlias: &raftv1.PutAlias{Alias: aliasToProto(a)}}}
}

// DeleteAlias makes the command that removes an alias. Deleting a missing one changes nothing.
func DeleteAlias(name string) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_DeleteAlias{DeleteAlias: &raftv1.DeleteAlias{Name: name}}}
}

func (e *entry) putAlias(op *raftv1.PutAlias) error {
	a := aliasFromProto(op.GetAlias())
	a.CreateIndex, a.ModifyIndex = e.index, e.index
	old, known := e.Alias(a.Name)
	switch {
	case known && old.Model == a.Model:
		return nil // repeated
	case known:
		a.CreateIndex = old.CreateIndex
	case e.AliasCount() >= MaxAliases:
		return core.Errorf(core.TooLarge, "set alias %s: the cluster already has %d aliases, the maximum", a.Name, MaxAliases).Hint(
			"Remove one: `rbee alias list`, `rbee alias remove`.")
	}
	e.PutAlias(a)
	return nil
}
