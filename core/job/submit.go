package job

import (
	"context"
	"maps"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
)

// Func runs a request and returns its result, which becomes JSON. It honours ctx, and returns
// success only after it has observed the effect.
type Func func(ctx context.Context, r core.Request, run *Run) (any, error)

// Funcs maps operations to their functions.
type Funcs map[core.Operation]Func

// Does adds the function that runs an operation.
func Does[R any](to Funcs, o operation.Of[R], f func(ctx context.Context, r core.Request, run *Run) (R, error)) {
	to[o.Name] = func(ctx context.Context, r core.Request, run *Run) (any, error) {
		v, err := f(ctx, r, run)
		if err != nil {
			return nil, err
		}
		return v, nil
	}
}

// Handle registers the functions of operations. Each part of the agent that runs operations calls
// it before the first Submit.
func (m *Manager) Handle(funcs Funcs) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.Copy(m.funcs, funcs)
}

// Knows returns nil if an operation has a registered function. Errors: Unsupported: the asking
// queen may be newer than this agent.
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
	return nil, operation.Unsupported(m.opts.Owner, m.opts.Version, op)
}

// Submit validates a request, as the agent that owns the job, and starts its operation as a job.
// Errors: Invalid, Unsupported.
func (m *Manager) Submit(r core.Request) (core.Job, error) {
	if err := operation.Check(r); err != nil {
		return core.Job{}, err
	}
	f, err := m.function(r.Operation)
	if err != nil {
		return core.Job{}, err
	}
	return m.Start(r.Operation, r.RequestID, func(ctx context.Context, run *Run) (any, error) { return f(ctx, r, run) }), nil
}
