// Package hives represents the hives of the cluster as one queen sees them: which exist, what they
// are called, what their workers do, and how to query them.
package hives

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/queen/liveness"
	"github.com/rbee-project/rbee/core/registry"
)

// Options are the dependencies of Hives. All fields are required.
type Options struct {
	Registry *registry.Registry
	Liveness interface {
		Hive(id string) *liveness.View
	}
	ID    string        // of this queen
	Local func() string // id of the hive in this process; empty: there is none
	// Conn returns the connection to a hive. Its errors are classified; the caller closes the
	// connection.
	Conn func(hive string) (grpc.ClientConnInterface, error)
}

// Hives combines the hives of the registry with their reports to this queen. It is safe for
// concurrent use.
type Hives struct{ opts Options }

// New returns the hives of a registry.
func New(o Options) *Hives { return &Hives{opts: o} }

// List returns the hives of the registry, with last beat, free bytes and suspicion where they
// report to this queen.
func (h *Hives) List() []core.Hive {
	hives := h.opts.Registry.View().Hives(nil)
	for i := range hives {
		h.opts.Liveness.Hive(hives[i].ID).AddTo(&hives[i])
	}
	return hives
}

// Unload reports whether a hive has announced that it unloads unused workers: older ones do not.
func (h *Hives) Unload(id string) bool {
	told := h.opts.Liveness.Hive(id).Report
	return told != nil && told.Unloads
}

// Named finds a hive by id, unique name, or core.LocalHive. Errors: NotFound; Conflict when several
// have the name.
func (h *Hives) Named(ctx context.Context, name string) (core.Hive, error) {
	return registry.LookUp(ctx, h.opts.Registry, func() (core.Hive, error) { return h.known(name) })
}

func (h *Hives) known(name string) (core.Hive, error) {
	hives := h.List()
	byID := func(id string) (core.Hive, bool) {
		i := slices.IndexFunc(hives, func(x core.Hive) bool { return x.ID == id })
		if id == "" || i < 0 {
			return core.Hive{}, false
		}
		return hives[i], true
	}
	if name == core.LocalHive {
		if found, ok := byID(h.opts.Local()); ok {
			return found, nil
		}
		if h.opts.Local() != "" {
			return core.Hive{}, core.Errorf(core.NotFound, "the hive of queen %s has not joined yet", h.opts.ID).Hint("Try again in a moment, or look at the log of the agent.")
		}
	}
	if found, ok := byID(name); ok {
		return found, nil
	}
	var named, names []string
	for _, x := range hives {
		if x.Name == name {
			named = append(named, x.ID)
		}
		names = append(names, x.ID, x.Name)
	}
	switch {
	case len(named) == 1:
		found, _ := byID(named[0])
		return found, nil
	case len(named) > 1:
		return core.Hive{}, core.Errorf(core.Conflict, "%d hives are named %q", len(named), name).Hint("Use an id: %s.", strings.Join(named, ", "))
	case name == core.LocalHive:
		return core.Hive{}, core.Errorf(core.NotFound, "queen %s has no hive of its own", h.opts.ID).Hint("Name one of these: %s.", cmp.Or(strings.Join(Unique(names), ", "), "none has joined yet"))
	}
	return core.Hive{}, core.Errorf(core.NotFound, "there is no hive %q", name).Hint("%sSee all with `rbee status`.", core.NearestHint(name, names))
}

// Up is Named for a hive about to be queried. Additional errors: Unavailable when it is down.
func (h *Hives) Up(ctx context.Context, name string) (core.Hive, error) {
	found, err := h.Named(ctx, name)
	if err == nil && found.Status == core.HiveDown {
		err = core.Errorf(core.Unavailable, "hive %s is down", found.Name).Hint("Start its agent again, and look at `rbee status`.")
	}
	return found, err
}

// Unique returns the names sorted, without duplicates and empty names.
func Unique(names []string) []string {
	names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == "" })
	slices.Sort(names)
	return slices.Compact(names)
}
