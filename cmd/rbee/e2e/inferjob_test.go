package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

// A prompt can also be answered as a job, and neither it nor the answer is on disk or in the log
// afterwards.
func TestInferAsJob(t *testing.T) {
	t.Parallel()
	a := startAgent(t, agentOptions{})
	const prompt = "What is 7 + 5?"
	r := core.Request{Operation: core.OpInfer, Model: "rbee-tiny", Prompt: prompt, MaxTokens: 64, RequestID: "infer"}
	var kinds []core.EventKind
	j, err := a.client().Run(t.Context(), r, func(e core.Event) error { kinds = append(kinds, e.Kind); return nil })
	must.NoError(t, err)
	result, err := client.Result[core.InferResult](j)
	must.NoError(t, err)
	must.StrContains(t, result.Text, "12")
	must.Eq(t, "rbee-tiny", result.Model)
	must.Eq(t, "stop", result.FinishReason)
	must.Positive(t, result.PromptTokens)
	must.Positive(t, result.CompletionTokens)
	must.SliceContains(t, kinds, core.EventProgress)
	again, err := a.client().Submit(t.Context(), r)
	must.NoError(t, err)
	must.Eq(t, j.ID, again.ID)

	_, err = a.client().Run(t.Context(), core.Request{Operation: core.OpInfer, Model: "nosuch", Prompt: prompt}, nil)
	must.Eq(t, core.NotFound, core.KindOf(err))

	files := 0
	must.NoError(t, filepath.WalkDir(a.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		files++
		b, err := os.ReadFile(path)
		must.NoError(t, err)
		must.StrNotContains(t, string(b), prompt, must.Sprint(path))
		must.StrNotContains(t, string(b), result.Text, must.Sprint(path))
		return nil
	}))
	must.Positive(t, files)
	must.False(t, strings.Contains(a.log.String(), prompt) || strings.Contains(a.log.String(), result.Text))
}
