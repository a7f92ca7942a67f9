package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
)

// asked is the outcome of one request.
type asked struct {
	status     int
	code       string
	retryAfter string
	text       string
	took       time.Duration
}

// askRaw sends a chat request and reads the whole answer.
func askRaw(ctx context.Context, c *http.Client, a *agent, prompt string, tokens int, stream bool) (asked, error) {
	body := fmt.Sprintf(`{"model":"rbee-tiny","stream":%v,"max_tokens":%d,"messages":[{"role":"user","content":%q}]}`, stream, tokens, prompt)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+a.addr+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return asked{}, err
	}
	start := time.Now()
	resp, err := c.Do(req)
	if err != nil {
		return asked{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	var failed struct {
		Error struct {
			Code string `json:"code"`
		} `json:"error"`
	}
	_ = json.Unmarshal(b, &failed)
	return asked{resp.StatusCode, failed.Error.Code, resp.Header.Get("Retry-After"), string(b), time.Since(start)}, err
}

// metric returns the value of one metric without labels.
func (a *agent) metric(name string) string {
	a.t.Helper()
	resp, err := http.Get("http://" + a.addr + "/metrics")
	must.NoError(a.t, err)
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return value
		}
	}
	return ""
}

// There are far more clients than two workers can serve: the workers stay trusted, and the log
// stays short.
func TestOverload(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	a := startAgent(t, agentOptions{})
	a.spawn()
	a.spawn()
	before := strings.Count(a.log.String(), "\n")
	transport := &http.Transport{MaxIdleConnsPerHost: 1000}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport}
	ask := func(ctx context.Context) (asked, error) { return askRaw(ctx, c, a, "Tell me a story", 16, false) }
	run := func(clients int, d time.Duration) (map[string]int, int) {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		var mu sync.Mutex
		statuses, whole := map[string]int{}, 0
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				for ctx.Err() == nil {
					r, err := ask(ctx)
					if err != nil {
						continue
					}
					mu.Lock()
					if statuses[fmt.Sprintf("%d %s", r.status, r.code)]++; r.status == http.StatusOK {
						whole++
					} else if r.retryAfter == "" || r.code == "" {
						t.Errorf("status %d, code %q, Retry-After %q", r.status, r.code, r.retryAfter)
					}
					mu.Unlock()
					if r.status != http.StatusOK { // clients back off
						select {
						case <-time.After(time.Second):
						case <-ctx.Done():
						}
					}
				}
			})
		}
		wg.Wait()
		return statuses, whole
	}
	d := time.Duration(envOr(t, "RBEE_OVERLOAD_SECONDS", 8)) * time.Second
	_, alone := run(8, d)
	statuses, whole := run(400, d)
	log := a.log.String()
	lines, suspicions := strings.Count(log, "\n")-before, strings.Count(log, "it is avoided until its hive confirms it")
	t.Logf("8 clients: %d answers; 400 clients: %d answers; statuses %v; failovers %s; suspicions %d; log lines %d", alone, whole, statuses, a.metric("rbee_gateway_failovers_total"), suspicions, lines)
	must.Eq(t, "0", a.metric("rbee_gateway_failovers_total"))
	must.Zero(t, suspicions)
	must.LessEq(t, 100, lines)
	must.Greater(t, alone/2, whole, must.Sprint("the workers go on to answer"))
	for _, s := range slices.Collect(maps.Keys(statuses)) {
		must.SliceContains(t, []string{"200 ", "503 overloaded", "504 queue_timeout"}, s)
	}
}

// mortals returns an agent with n workers that die when a request asks for it.
func mortals(t *testing.T, n int) *agent {
	t.Helper()
	plugins := t.TempDir()
	own, err := filepath.Glob(filepath.Join(binDir(t), "plugins", "rbee-catalog-builtin"))
	must.NoError(t, err)
	for _, p := range own {
		data, err := os.ReadFile(p)
		must.NoError(t, err)
		must.NoError(t, os.WriteFile(filepath.Join(plugins, filepath.Base(p)), data, 0o700))
	}
	must.NoError(t, coretest.Build(filepath.Join(plugins, "rbee-worker-mortal"), "./testdata/mortal"))
	a := startAgent(t, agentOptions{store: t.TempDir(), args: []string{"-plugin-dir", plugins}})
	for range n {
		a.spawn("--type", "mortal")
	}
	return a
}

// One request must not kill one worker after the other.
func TestDeadlyRequest(t *testing.T) {
	t.Parallel()
	const all = 6
	a := mortals(t, all)
	workers := func() int { return len(jsonOf[[]core.Worker](a, "worker", "list")) }
	must.Eq(t, all, workers())
	c := &http.Client{}
	r, err := askRaw(t.Context(), c, a, "die", 1, false)
	must.NoError(t, err)
	must.Eq(t, http.StatusBadGateway, r.status, must.Sprint(r.text))
	must.Eq(t, "worker_lost", r.code)
	coretest.Eventually(t, patience, func() error {
		if n := workers(); n != all-2 {
			return fmt.Errorf("%d of %d workers", n, all)
		}
		return nil
	})

	// The client retries again and again; other requests are answered.
	for range 5 {
		r, err = askRaw(t.Context(), c, a, "die", 1, false)
		must.NoError(t, err)
		must.Eq(t, http.StatusBadRequest, r.status)
		must.Eq(t, "request_refused", r.code)
	}
	r, err = askRaw(t.Context(), c, a, "live", 1, false)
	must.NoError(t, err)
	must.Eq(t, http.StatusOK, r.status)
	must.Eq(t, all-2, workers())
	t.Logf("%d of %d workers are left", workers(), all)
}

// A worker that hangs delays its requests by seconds only: they are rerouted, and it is killed.
func TestHungWorker(t *testing.T) {
	t.Parallel()
	a := startAgent(t, agentOptions{env: []string{"RBEE_HIVE_WORKER_TIMEOUT=8s"}})
	a.spawn()
	hung := a.spawn()
	c := &http.Client{}
	const clients = 8
	ask := func() (slowest time.Duration, hanging int) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range clients {
			wg.Go(func() {
				r, err := askRaw(ctx, c, a, fmt.Sprint("story ", i), 8, i%2 == 0)
				mu.Lock()
				defer mu.Unlock()
				slowest = max(slowest, r.took)
				if err != nil || r.status != http.StatusOK || strings.Contains(r.text, `"error"`) {
					t.Logf("%v: status %d: %s", err, r.status, r.text)
					hanging++
				}
			})
		}
		wg.Wait()
		return slowest, hanging
	}
	slowest, hanging := ask()
	must.Zero(t, hanging)
	t.Logf("before: %d requests in %s at most", clients, slowest)
	must.NoError(t, syscall.Kill(hung.PID, syscall.SIGSTOP))
	slowest, hanging = ask()
	t.Logf("with a stopped worker: %d requests in %s at most, %d of them in vain", clients, slowest, hanging)
	must.Zero(t, hanging)
	must.Less(t, 25*time.Second, slowest)
	coretest.Eventually(t, patience, func() error {
		if err := syscall.Kill(hung.PID, 0); err == nil {
			return fmt.Errorf("process %d is there", hung.PID)
		}
		return nil
	})
	must.Len(t, 1, jsonOf[[]core.Worker](a, "worker", "list"))
	slowest, hanging = ask()
	must.Zero(t, hanging)
	t.Logf("after: %d requests in %s at most", clients, slowest)
}
