package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/gguf"
)

// twoModels writes rbee-tiny and a copy that counts as another model, and returns the memory of a
// worker with either.
func twoModels(t *testing.T, dir string) (need int64) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "plugins", "catalog-builtin", "rbee-tiny.gguf"))
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(filepath.Join(dir, "one.gguf"), b, 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "two.gguf"), append(b, make([]byte, 32)...), 0o600))
	header, err := gguf.Read(bytes.NewReader(b), int64(len(b)))
	must.NoError(t, err)
	return header.EstimateBytes(4, min(4096, header.ContextTokens))
}

// Twenty clients use two models of which only one fits: every request is answered, and the models
// are loaded far less often than the requests alternate between them. Then they unload.
func TestModelsTakeTurns(t *testing.T) {
	t.Parallel()
	models := t.TempDir()
	need := twoModels(t, models)
	a := startAgent(t, agentOptions{
		store:  shortDir(t),
		config: strings.Replace(oneMachine, "hive {\n", fmt.Sprintf("hive {\n  memory_limit = %d\n", need*3/2), 1) + fileCatalog(models),
	})
	for _, name := range []string{"one", "two"} {
		a.must("pull", "file:"+filepath.Join(models, name+".gguf"), "--name", name)
	}
	a.must("operator", "setting", "set", "swap_wait", "2s")
	a.must("operator", "setting", "set", "swap_warm", "1s")

	type asked struct {
		at    time.Time
		model string
		took  time.Duration
	}
	var (
		mu    sync.Mutex
		all   []asked
		wg    sync.WaitGroup
		waits []string
	)
	const clients, each = 20, 8
	for i := range clients {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(17, uint64(i)))
			for range each {
				x := asked{at: time.Now(), model: []string{"one", "two"}[r.IntN(2)]}
				status, id, body := postJSON(t, a, "/v1/chat/completions", map[string]any{
					"model": x.model, "max_tokens": 4, "messages": []map[string]string{{"role": "user", "content": "hello"}},
				})
				x.took = time.Since(x.at)
				mu.Lock()
				all = append(all, x)
				waits = append(waits, id)
				mu.Unlock()
				if status != http.StatusOK {
					t.Errorf("a request for %s: %d %s", x.model, status, body)
				}
			}
		})
	}
	wg.Wait()
	must.Len(t, clients*each, all)
	loads := strings.Count(a.log.String(), "worker is ready")
	slices.SortFunc(all, func(x, y asked) int { return x.at.Compare(y.at) })
	inOrder, last := 0, ""
	var took []time.Duration
	for _, x := range all {
		if x.model != last {
			inOrder, last = inOrder+1, x.model
		}
		took = append(took, x.took)
	}
	slices.Sort(took)
	t.Logf("%d requests: %d loads, in order %d; p50 %s, p95 %s", len(all), loads, inOrder, took[len(took)/2], took[len(took)*95/100])
	must.GreaterEq(t, 2, loads)
	must.LessEq(t, 0.4*float64(inOrder), float64(loads))

	// At least one request waited for room, and its route reports it.
	why := ""
	for _, id := range waits {
		why += fmt.Sprintln(jsonOf[core.RouteRecord](a, "why", id).WaitedFor)
		if strings.Contains(why, "wait for room on cpu") {
			break
		}
	}
	must.StrContains(t, why, "wait for room on cpu")

	// The remaining worker unloads after five minutes, or when a request asks for it.
	workers := jsonOf[[]core.Worker](a, "ps")
	must.Len(t, 1, workers)
	must.True(t, workers[0].Load.Unloads)
	must.StrContains(t, a.must("ps"), "UNTIL")
	resp, err := http.Get("http://" + a.addr + "/api/ps")
	must.NoError(t, err)
	defer resp.Body.Close()
	var running struct {
		Models []struct {
			ExpiresAt time.Time `json:"expires_at"`
		} `json:"models"`
	}
	must.NoError(t, json.NewDecoder(resp.Body).Decode(&running))
	must.Len(t, 1, running.Models)
	must.Between(t, time.Minute, time.Until(running.Models[0].ExpiresAt), 6*time.Minute)

	status, _, body := postJSON(t, a, "/api/generate", map[string]any{"model": workers[0].Model, "keep_alive": 0, "stream": false})
	must.Eq(t, http.StatusOK, status, must.Sprint(body))
	must.StrContains(t, body, `"done_reason":"unload"`)
	coretest.Eventually(t, patience, func() error {
		if left := jsonOf[[]core.Worker](a, "ps"); len(left) > 0 {
			return fmt.Errorf("there is still %+v", left)
		}
		return nil
	})
	status, _, body = postJSON(t, a, "/v1/chat/completions", map[string]any{"model": "one", "keep_alive": "soon", "messages": []any{}})
	must.Eq(t, http.StatusBadRequest, status)
	must.StrContains(t, body, "keep_alive")
}

// postJSON posts to the agent and returns the status, the request's id and the body.
func postJSON(t *testing.T, a *agent, path string, request any) (status int, id, body string) {
	b, err := json.Marshal(request)
	if err != nil {
		t.Error(err)
		return 0, "", ""
	}
	resp, err := http.Post("http://"+a.addr+path, "application/json", bytes.NewReader(b))
	if err != nil {
		t.Error(err)
		return 0, "", ""
	}
	defer resp.Body.Close()
	b, err = io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp.StatusCode, resp.Header.Get("X-Request-Id"), string(b)
}
