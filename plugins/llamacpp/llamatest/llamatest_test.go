package llamatest_test

import (
	"os"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/llamacpp/llamatest"
)

func TestCheck(t *testing.T) {
	dir := os.Getenv("RBEE_TEST_ENGINE_DIR")
	if dir == "" {
		t.Skip("RBEE_TEST_ENGINE_DIR is not set: `make test` fetches the engine and sets it")
	}
	llamatest.Load(t, dir)
	loop := llamatest.New(t, "../../catalog-builtin/rbee-tiny.gguf")
	prompt := loop.Tokens("<|im_start|>user\nWhat is a queen?<|im_end|>\n<|im_start|>assistant\n")
	const limit = 100
	a := loop.Answer(t, prompt, limit)
	must.Greater(t, llamatest.Margin, a.Gap)
	must.NoError(t, loop.Check(t, prompt, limit, a.Text))
	cut := loop.Answer(t, prompt, 5)
	must.Len(t, 5, cut.Tokens)
	must.NoError(t, loop.Check(t, prompt, 5, cut.Text))
	for name, c := range map[string]struct {
		text  string
		limit int
	}{
		"empty":        {"", limit},
		"another":      {"The queen sleeps.", limit},
		"one word":     {strings.Replace(a.Text, "schedules", "forgets", 1), limit},
		"ends early":   {cut.Text, limit},
		"goes on":      {a.Text + " And more.", limit},
		"cut too late": {a.Text, 5},
	} {
		t.Run(name, func(t *testing.T) {
			must.ErrorContains(t, loop.Check(t, prompt, c.limit, c.text), "no token goes on")
		})
	}
	must.NoError(t, loop.Check(t, prompt, limit, a.Text)) // a failed search leaves no traces
}
