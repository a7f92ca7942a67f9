package job

import (
	"context"
	"maps"

	"github.com/rbee-project/rbee/core"
)

// Func runs a request and returns its result, which becomes JSON. It honours ctx, and returns
// success only after it observed the effect.
type Func func(ctx context.Context, r core.Request, run *Run) (any, error)

// Typed returns a function with a result of its own type as a Func, whose result is nil on an
// error.
func Typed[T any](f func(ctx context.Context, r core.Request, run *Run) (T, error)) Func {
	return func(ctx context.Context, r core.Request, run *Run) (any, error) {
		v, err := f(ctx, r, run)
		if err != nil {
			return nil, err
		}
		return v, nil
	}
}

// Handle adds the functions of operations. Each part of the agent that runs operations calls it
// before the first Submit.
func (m *Manager) Handle(funcs map[core.Operation]Func) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.Copy(m.funcs, funcs)
}

// Knows returns nil if there is a function for an operation. Errors: Unsupported: the asking queen
// may be newer than this agent.
func (m *Manager) Knows(op core.Operation) error {
	_, err := m.function(op)
	return err
}

func (m *Manager) function(op core.Operation) (Func, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f, ok := m.funcs[op]; ok {
		return f, nil
	}
	return nil, core.Errorf(core.Unsupported, "node %s, which runs rbee %s, does not know the operation %q", m.opts.Owner, m.opts.Version, op).Hint(
		"Install the same version of rbee there as on the queens.")
}

// Submit checks a request and starts its operation as a job. Errors: Invalid, Unsupported.
func (m *Manager) Submit(r core.Request) (core.Job, error) {
	f, err := m.function(r.Operation)
	if err != nil {
		return core.Job{}, err
	}
	if err := core.CheckRequest(r); err != nil {
		return core.Job{}, err
	}
	return m.Start(r.Operation, r.RequestID, func(ctx context.Context, run *Run) (any, error) { return f(ctx, r, run) }), nil
}
