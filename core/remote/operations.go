package remote

import (
	"context"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
)

// Operations returns the functions of the operations that core.Operations runs over SSH.
func (r *Remote) Operations() map[core.Operation]job.Func {
	return map[core.Operation]job.Func{
		core.OpHiveInstall:   operation(r.Install),
		core.OpHiveUninstall: operation(r.Uninstall),
		core.OpHiveStart:     operation(r.Start),
		core.OpHiveStop:      operation(r.Stop),
		core.OpSSHTest:       operation(r.Test),
		core.OpHiveImportSSH: operation(r.Import),
	}
}

func operation[T any](f func(context.Context, core.Request, Run) (T, error)) job.Func {
	return job.Typed(func(ctx context.Context, req core.Request, run *job.Run) (T, error) { return f(ctx, req, run) })
}
