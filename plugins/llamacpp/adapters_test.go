package llamacpp

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/native"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// Each request is answered with the adapters it names, concurrent requests get the same answers as
// alone, and no request reuses a prefix read with other adapters.
func TestAdapters(t *testing.T) {
	path, one, two := synthetic(t), synthetic(t, "-lora", "4", "-seed", "2"), synthetic(t, "-lora", "8", "-seed", "3")
	dir := t.TempDir()
	for name, from := range map[string]string{"one.gguf": one, "two.gguf": two} {
		must.NoError(t, os.Rename(from, filepath.Join(dir, name)))
	}
	list, err := json.Marshal([]string{filepath.Join(dir, "one.gguf") + ":0", filepath.Join(dir, "two.gguf") + ":0"})
	must.NoError(t, err)
	w := startWorkerOf(t, path, 3, 256, fmt.Sprintf(`{"lora":%s,"prefix_store_mib":8}`, list))
	question := func(more string) string {
		return question("Which hive has most bees in it, and who counts them?", `,"max_tokens":24,"ignore_eos":true`+more)
	}
	kinds := []string{``, `,"lora":[{"name":"one","scale":1}]`, `,"lora":[{"id":1,"scale":1}]`, `,"lora":[{"id":0,"scale":0.5},{"name":"two","scale":-1}]`}
	alone := make([]string, len(kinds))
	for i, kind := range kinds {
		first := w.chat(t, question(kind))
		must.Zero(t, first.Usage.PromptTokensDetails.CachedTokens, must.Sprint(kind))
		again := w.chat(t, question(kind))
		must.Positive(t, again.Usage.PromptTokensDetails.CachedTokens, must.Sprint(kind))
		alone[i] = *first.Choices[0].Message.Content
		for _, other := range alone[:i] {
			must.NotEq(t, other, alone[i])
		}
	}
	bare := startWorkerOf(t, path, 1, 256, "")
	must.Eq(t, alone[0], *bare.chat(t, question("")).Choices[0].Message.Content)
	must.Eq(t, alone[0], *w.chat(t, question(`,"lora":[]`)).Choices[0].Message.Content)

	same := make([]int, len(kinds))
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			got := *w.chat(t, question(kinds[i%4])).Choices[0].Message.Content
			mu.Lock()
			defer mu.Unlock()
			if got == alone[i%4] {
				same[i%4]++
			}
		})
	}
	wg.Wait()
	for i, n := range same {
		must.Positive(t, n, must.Sprint(kinds[i])) // rounding may flip a near tie
	}

	for body, want := range map[string]string{
		`,"lora":[{"name":"three","scale":1}]`:  "it has one, two",
		`,"lora":[{"id":2,"scale":1}]`:          "it has one, two",
		`,"lora":[{"id":-1,"scale":1}]`:         "it has one, two",
		`,"lora":[{"scale":1}]`:                 "the name or the id",
		`,"lora":[{"name":"one","scale":1000}]`: "between -100 and 100",
	} {
		status, e, _ := w.refused(t, "/v1/chat/completions", question(body))
		must.Eq(t, 400, status)
		must.StrContains(t, e.Message, want)
		must.StrNotContains(t, e.Message, dir)
	}
	_, e, _ := bare.refused(t, "/v1/chat/completions", question(kinds[1]))
	must.StrContains(t, e.Message, "no lora adapters")
}

// Adapters of another architecture or shape are refused with the reason.
func TestMismatchedAdapters(t *testing.T) {
	path := synthetic(t)
	for name, args := range map[string][]string{
		"architecture": {"-lora", "4", "-arch", "qwen2"},
		"shape":        {"-lora", "4", "-embd", "128", "-heads", "4"},
		"a model":      nil,
	} {
		t.Run(name, func(t *testing.T) {
			b, spec := newWorkerOf(t, path, 1, 256, fmt.Sprintf(`{"lora":[%q]}`, synthetic(t, args...)))
			_, err := b.Start(t.Context(), spec, nil)
			must.ErrorIs(t, err, sdk.ErrInvalid)
			must.ErrorContains(t, err, "adapter")
			t.Log(err)
		})
	}
}

func TestParseAdapters(t *testing.T) {
	t.Parallel()
	list, err := parseAdapters([]string{"/a/x.gguf", "/a/y.gguf:-0.5"})
	must.NoError(t, err)
	must.Eq(t, adapters{{"x", "/a/x.gguf", 1}, {"y", "/a/y.gguf", -0.5}}, list)
	scales, err := list.chosen(nil)
	must.NoError(t, err)
	must.Eq(t, native.Scales([]float64{1, -0.5}), scales)
	scales, err = list.chosen(&[]openai.LoRA{{Name: "y", Scale: 2}})
	must.NoError(t, err)
	must.Eq(t, "0,2", scales)
	for _, bad := range [][]string{{"x.gguf"}, {"/a/x.gguf:much"}, {"/a/x.gguf:1e9"}, {"/a/x.gguf:NaN"}, {"/a/x.gguf", "/b/x.gguf"}, strings.Split(strings.Repeat("/a,", 65), ",")} {
		_, err := parseAdapters(bad)
		must.Error(t, err, must.Sprint(bad))
	}
}
