package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/gguf"
)

// resident returns the memory of a process: its own, and that of file pages.
func resident(t testing.TB, pid int) (own, files int64) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		kib, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "RssAnon:", "RssShmem:":
			own += kib << 10
		case "RssFile:":
			files += kib << 10
		}
	}
	return own, files
}

// The estimate matches the memory of a worker with the real engine that has read a prompt as long
// as a step of the engine: within 10 % and 16 MiB. If the engine has repacked the weights, the
// mapped file does not count: the system reclaims its pages when it needs memory.
func TestMemoryEstimateIsWhatTheEngineTakes(t *testing.T) {
	t.Parallel()
	tiny, err := filepath.Abs("../../../plugins/catalog-builtin/rbee-tiny.gguf")
	must.NoError(t, err)
	small, wide := generate(t, "small.gguf", "-preset", "15m", "-type", "f32"), generate(t, "wide.gguf", "-preset", "135m", "-type", "q4_0", "-layers", "10")
	var folders []string
	for _, f := range []string{tiny, small, wide} {
		folders = append(folders, strconv.Quote(filepath.Dir(f)))
	}
	a := startAgent(t, agentOptions{config: oneMachine + "catalog \"file\" {\n  config {\n    paths = [" + strings.Join(folders, ", ") + "]\n  }\n}\n", store: ownStore(t)})
	for _, c := range []struct {
		file           string
		slots, context int
	}{{tiny, 1, 512}, {tiny, 8, 1024}, {small, 1, 512}, {small, 4, 2048}, {wide, 1, 1024}, {wide, 6, 4096}} {
		holdsWhatIsEstimated(t, a, c.file, c.slots, c.context, 0)
	}
	// Then with a draft model beside it.
	draft := generate(t, "draft.gguf", "-preset", "135m", "-type", "q4_0", "-layers", "2")
	b := startAgent(t, agentOptions{config: oneMachine + "worker \"cpu\" {\n  config {\n    draft = " + strconv.Quote(draft) + "\n  }\n}\ncatalog \"file\" {\n  config {\n    paths = [" + folders[2] + "]\n  }\n}\n", store: ownStore(t)})
	holdsWhatIsEstimated(t, b, wide, 2, 1024, headerOf(t, draft).EstimateDraft(2, 1024).Total())
}

// headerOf reads a model's header.
func headerOf(t testing.TB, file string) *gguf.File {
	t.Helper()
	r, err := os.Open(file)
	must.NoError(t, err)
	info, err := r.Stat()
	must.NoError(t, err)
	header, err := gguf.Read(r, info.Size())
	must.NoError(t, err)
	must.NoError(t, r.Close())
	return header
}

// holdsWhatIsEstimated spawns a worker and compares its memory with the estimate.
func holdsWhatIsEstimated(t *testing.T, a *agent, file string, slots, context int, beside int64) {
	t.Helper()
	header := headerOf(t, file)
	w := a.spawn("--model", "file:"+file, "--slots", strconv.Itoa(slots), "--context", strconv.Itoa(context))
	prompt := strings.Repeat("on ", 150)
	body := fmt.Sprintf(`{"model":%q,"prompt":%q,"max_tokens":4}`, w.Worker.Model, prompt)
	resp, err := http.Post("http://"+a.addr+"/v1/completions", "application/json", strings.NewReader(body))
	must.NoError(t, err)
	must.NoError(t, resp.Body.Close())
	must.Eq(t, http.StatusOK, resp.StatusCode)

	e := header.Estimate(slots, context)
	own, files := resident(t, w.PID)
	held, repacked := own+files, e.Weights > 16<<20 && own > e.Cache+e.Weights*9/10
	if repacked {
		held -= e.Weights
	}
	estimate := e.Total() + beside
	off, bound := estimate-held, held/10+16<<20
	t.Logf("%s, %d × %d: estimated %d MiB, held %d MiB (own %d, files %d, repacked %v), off by %d MiB", filepath.Base(file), slots, context,
		estimate>>20, held>>20, own>>20, files>>20, repacked, off>>20)
	must.Between(t, -bound, off, bound)
	a.must("worker", "retire", w.Worker.ID, "--yes")
}
