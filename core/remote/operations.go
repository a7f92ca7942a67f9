package remote

import (
	"context"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/operation"
)

// Operations returns the functions of the operations that run over SSH.
func (r *Remote) Operations() job.Funcs {
	funcs := job.Funcs{}
	does(funcs, operation.HiveInstall, r.Install)
	does(funcs, operation.HiveUninstall, r.Uninstall)
	does(funcs, operation.HiveStart, r.Start)
	does(funcs, operation.HiveStop, r.Stop)
	does(funcs, operation.SSHTest, r.Test)
	does(funcs, operation.HiveImportSSH, r.Import)
	return funcs
}

func does[R any](to job.Funcs, o operation.Of[R], f func(context.Context, core.Request, Run) (R, error)) {
	job.Does(to, o, func(ctx context.Context, req core.Request, run *job.Run) (R, error) { return f(ctx, req, run) })
}
