package queen

import (
	"context"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
)

// infer answers a prompt as a job. How far it is becomes progress; what it says is the result, and
// nothing else.
func (q *Queen) infer(ctx context.Context, r core.Request, run *job.Run) (core.InferResult, error) {
	if q.opts.Infer == nil {
		return core.InferResult{}, core.Errorf(core.Unsupported, "this queen answers no prompts")
	}
	return q.opts.Infer(ctx, r, run.Progress, func(line string) { run.Log("%s", line) })
}
