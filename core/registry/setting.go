package registry

import (
	"context"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/setting"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// Setting returns a cluster setting in this node's current state, or its default; set reports
// whether it was set.
func Setting[T any](r interface{ View() *state.Snapshot }, s setting.Of[T]) (v T, set bool) {
	row, ok := r.View().Setting(nil, s.Name)
	return s.Value(row.Value, ok)
}

// Settings lists the settings of the cluster, sorted by name: those known to this version, and
// those set by another version.
func (r *Registry) Settings() []core.Setting {
	rows := r.View().Settings(nil)
	list := []core.Setting{}
	for _, s := range setting.All() {
		i := slices.IndexFunc(rows, func(row state.Setting) bool { return row.Name == s.Name })
		if i < 0 {
			list = append(list, describe(s, state.Setting{}, false))
			continue
		}
		list = append(list, describe(s, rows[i], true))
		rows = slices.Delete(rows, i, i+1)
	}
	for _, row := range rows {
		list = append(list, core.Setting{Name: row.Name, Value: row.Value, Set: true, Problem: "this version of rbee does not know it"})
	}
	slices.SortFunc(list, func(a, b core.Setting) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// SettingsSet lists the settings that somebody set.
func (r *Registry) SettingsSet() []core.Setting {
	return slices.DeleteFunc(r.Settings(), func(s core.Setting) bool { return !s.Set })
}

func describe(s setting.Spec, row state.Setting, set bool) core.Setting {
	v := core.Setting{Name: s.Name, Value: s.Default, Set: set, Values: s.Values, Doc: s.Doc}
	if !set {
		return v
	}
	v.Value = row.Value
	if s.Check(row.Value) != nil {
		v.Problem = "this version of rbee does not accept the value: the setting counts as unset"
	}
	return v
}

// Set changes a cluster setting. Errors: NotFound for an unknown name, Invalid for an invalid
// value, Unsupported while an older queen runs, Unavailable.
func (r *Registry) Set(ctx context.Context, name, value string) (core.Setting, error) {
	s, err := setting.Find(name)
	if err != nil {
		return core.Setting{}, err
	}
	if err := s.Check(value); err != nil {
		return core.Setting{}, err
	}
	if err := r.Write(ctx, "set "+name, fsm.PutSetting(name, value)); err != nil {
		return core.Setting{}, err
	}
	return describe(s, state.Setting{Value: value}, true), nil
}

// Reset returns a cluster setting to its default. It can also reset a setting unknown to this
// version if it was set. Errors: NotFound, Unsupported, Unavailable.
func (r *Registry) Reset(ctx context.Context, name string) (core.Setting, error) {
	s, err := setting.Find(name)
	if err != nil {
		if _, ok := r.View().Setting(nil, name); !ok {
			return core.Setting{}, err
		}
		s = setting.Spec{Name: name}
	}
	if err := r.Write(ctx, "reset "+name, fsm.ResetSetting(name)); err != nil {
		return core.Setting{}, err
	}
	return describe(s, state.Setting{}, false), nil
}
