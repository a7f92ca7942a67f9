package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/rpc"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// asJSON runs `rbee args… --format json` at the node and decodes its output.
func asJSON[T any](n *node, args ...string) T {
	n.c.t.Helper()
	var v T
	out := n.must(append(args, "--format", "json")...)
	must.NoError(n.c.t, json.Unmarshal([]byte(out), &v), must.Sprint(out))
	return v
}

// nodeNamed returns the node with this name.
func (c *cluster) nodeNamed(name string) *node {
	c.t.Helper()
	at := slices.IndexFunc(c.nodes, func(n *node) bool { return n.name == name })
	must.NotEq(c.t, -1, at)
	return c.nodes[at]
}

// awaitHealth waits until a cluster of this size reports no problems.
func (c *cluster) awaitHealth(queens, hives int) {
	c.t.Helper()
	c.await(func(s core.Status) error {
		voters := 0
		for _, q := range s.Queens {
			if q.Voter {
				voters++
			}
		}
		problems := slices.DeleteFunc(slices.Clone(s.Problems), func(p string) bool {
			return queens == 2 && strings.HasPrefix(p, "two queens vote")
		})
		if len(problems) > 0 || voters != queens || len(s.Queens) != queens || len(s.Hives) != hives || s.Leader == "" {
			return fmt.Errorf("%d voters, %d hives, problems: %v", voters, len(s.Hives), problems)
		}
		return nil
	})
}

// allClient returns a client with its own connections that knows all queens, like a remote program.
func (c *cluster) allClient() *client.Client {
	c.t.Helper()
	var addresses []string
	for _, n := range c.nodes {
		if n.queen {
			addresses = append(addresses, n.url())
		}
	}
	cl, err := client.New(client.Options{Addresses: addresses, Token: c.token, CACert: c.ca})
	must.NoError(c.t, err)
	c.t.Cleanup(cl.Close)
	return cl
}

// tinyQuestion returns one that rbee-tiny can answer.
func tinyQuestion(maxTokens int) openai.ChatRequest {
	return openai.ChatRequest{
		Model: "rbee-tiny", MaxCompletionTokens: new(openai.Int(maxTokens)), Messages: []openai.Message{{Role: "user", Content: openai.TextContent("What is a queen?")}},
	}
}

// traffic is steady load through a client: answers, streams and registry writes, until it is
// stopped.
type traffic struct {
	cl   *client.Client
	wg   sync.WaitGroup
	stop chan struct{}

	mu     sync.Mutex // guards below
	done   map[string]int
	failed []string
	acks   []time.Time
}

func newTraffic(cl *client.Client) *traffic {
	return &traffic{cl: cl, stop: make(chan struct{}), done: map[string]int{}}
}

func (tr *traffic) note(what string, err error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if err != nil {
		tr.failed = append(tr.failed, fmt.Sprintf("%s: %v (%s)", what, err, core.HintOf(err)))
		return
	}
	tr.done[what]++
	if what == "write" {
		tr.acks = append(tr.acks, time.Now())
	}
}

// repeat runs a function at an interval.
func (tr *traffic) repeat(every time.Duration, what string, f func(ctx context.Context) error) {
	tr.wg.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tr.stop:
				return
			case <-tick.C:
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			tr.note(what, f(ctx))
			cancel()
		}
	})
}

func (tr *traffic) answers(every time.Duration) {
	tr.repeat(every, "answer", func(ctx context.Context) error {
		resp, _, err := tr.cl.Chat(ctx, tinyQuestion(4))
		if err == nil && len(resp.Choices) != 1 {
			return fmt.Errorf("%d choices", len(resp.Choices))
		}
		return err
	})
}

func (tr *traffic) streams(every time.Duration) {
	tr.repeat(every, "stream", func(ctx context.Context) error {
		return tr.cl.ChatStream(ctx, tinyQuestion(120), func(openai.ChatChunk) error { return nil })
	})
}

// writes drains a hive and ends the drain, which can be repeated if an answer is lost.
func (tr *traffic) writes(every time.Duration, hive string) {
	drain := false
	tr.repeat(every, "write", func(ctx context.Context) error {
		drain = !drain
		_, err := tr.cl.DrainHive(ctx, hive, drain)
		return err
	})
}

// end stops the traffic and waits for running requests.
func (tr *traffic) end() {
	close(tr.stop)
	tr.wg.Wait()
}

// gap returns the longest time between two acknowledged writes.
func (tr *traffic) gap() time.Duration {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	var longest time.Duration
	for i := 1; i < len(tr.acks); i++ {
		longest = max(longest, tr.acks[i].Sub(tr.acks[i-1]))
	}
	return longest
}

// Every queen is restarted once, under load: no request fails, and no write waits for an election.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(3, 2)
	c.nodes[0].must("worker", "spawn", "--model", "rbee-tiny", "--hive", "hive-1")
	tr := newTraffic(c.allClient())
	tr.answers(150 * time.Millisecond)
	tr.streams(200 * time.Millisecond)
	tr.writes(20*time.Millisecond, "hive-2") // it has no worker
	for _, q := range slices.Clone(c.queens()) {
		led := c.leader() == q
		ended := time.Now()
		q.stop(syscall.SIGTERM)
		took := time.Since(ended)
		q.start()
		q.awaitAnswer()
		c.await(func(s core.Status) error {
			if s.Leader == "" || len(s.Problems) > 0 {
				return fmt.Errorf("problems: %v", s.Problems)
			}
			return nil
		})
		fmt.Printf("%s restarted (it led: %t): it took %d ms to end, %d ms until all was well\n", q.name, led, took.Milliseconds(), time.Since(ended).Milliseconds())
		if led {
			must.StrNotContains(t, q.log.String(), "the leadership is not handed over")
		}
	}
	tr.end()
	fmt.Printf("  requests: %v, failed %d; longest time between two writes %d ms\n", tr.done, len(tr.failed), tr.gap().Milliseconds())
	must.SliceEmpty(t, tr.failed)
	for _, what := range []string{"answer", "stream", "write"} {
		must.Positive(t, tr.done[what])
	}
}

// A queen and a hive leave for good. The others report no problem; the machines that left are
// refused, and rejoin with a new token as new nodes.
func TestLeave(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(3, 2)
	c.serve()
	queen, hive, stays := c.nodeNamed("queen-3"), c.nodeNamed("hive-2"), c.nodes[0]
	worker := agent{dir: hive.dir}
	pids := worker.handlePIDs()
	must.SliceLen(t, 1, pids)

	certificates := map[string]tls.Certificate{}
	for _, leaver := range []*node{hive, queen} {
		certificates[leaver.id()] = keptCertificate(t, leaver)
		began := time.Now()
		if leaver == queen { // removed by name from another machine, or on the machine itself
			leaver.must("cluster", "leave", "--yes", "--config", leaver.file)
		} else {
			stays.must("cluster", "leave", leaver.name, "--yes")
		}
		select {
		case <-leaver.process.Load().done:
		case <-time.After(patience):
			t.Fatalf("the agent of %s goes on", leaver.name)
		}
		fmt.Printf("%s left in %d ms\n", leaver.name, time.Since(began).Milliseconds())
		must.Eq(t, 0, leaver.process.Load().cmd.ProcessState.ExitCode())
		for _, name := range []string{"cluster", "raft", "gossip", "node-id"} {
			_, err := os.Stat(filepath.Join(leaver.dir, name))
			must.ErrorIs(t, err, os.ErrNotExist, must.Sprint(name))
		}
		if leaver == hive {
			must.SliceEmpty(t, worker.handlePIDs())
			must.ErrorIs(t, syscall.Kill(pids[0], 0), syscall.ESRCH)
			c.awaitHealth(3, 1)
		} else {
			c.awaitHealth(2, 1)
		}
	}
	for id, certificate := range certificates {
		coretest.Eventually(t, patience, func() error {
			for _, n := range asJSON[[]core.Node](stays, "tls", "list") {
				if n.ID == id && !n.Revoked {
					return errors.New("its certificate is still good")
				}
			}
			return nil
		})
		for _, q := range c.queens() {
			coretest.Eventually(t, patience, func() error {
				if err := knock(q.ip+":7834", rpc.ProtocolGRPC, tls.VersionTLS13, certificate); err == nil {
					return fmt.Errorf("%s lets it in", q.name)
				}
				return nil
			})
		}
	}
	must.StrContains(t, stays.must("infer", "--model", "rbee-tiny", "--prompt", "What is a queen?"), "coordinates")
	for _, leaver := range []*node{queen, hive} {
		leaver.start("-join", stays.joinToken(leaver)+"@"+stays.ip)
	}
	queen.awaitAnswer()
	c.await(func(s core.Status) error { // it votes after ten quiet seconds
		if len(s.Queens) != 3 || len(s.Hives) != 2 || len(s.Problems) > 0 {
			return fmt.Errorf("%d queens, %d hives, problems: %v", len(s.Queens), len(s.Hives), s.Problems)
		}
		return nil
	})

	// The last voting queen stays.
	for _, q := range []string{"queen-3", "queen-2"} {
		stays.must("cluster", "leave", q, "--yes")
	}
	c.awaitHealth(1, 2)
	last := stays.run("cluster", "leave", "--yes", "--config", stays.file)
	refused(t, last, 1, "only voting queen")
	must.True(t, stays.running())
}

// Everything is killed at once. The registry is restored completely, and requests find their
// workers, without manual steps. A kill does not undo writes: the TestPowerLoss… tests of the
// packages that write cover a loss of power.
func TestEverythingIsKilled(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(3, 2)
	c.serve()
	stays := c.nodes[0]
	reader := asJSON[core.NewToken](stays, "token", "create", "--type", "api", "--scope", "read", "--name", "survivor")
	before := asJSON[[]core.Worker](stays, "ps")
	must.SliceLen(t, 2, before)
	for _, n := range c.nodes {
		_ = n.signal(syscall.SIGKILL)
	}
	for _, n := range c.nodes {
		n.kill()
	}
	started := time.Now()
	for _, n := range c.nodes {
		n.start()
	}
	cl := c.allClient()
	coretest.Eventually(t, patience, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, _, err := cl.Chat(ctx, tinyQuestion(2))
		return err
	})
	routed := time.Since(started)
	c.awaitHealth(3, 2)
	fmt.Printf("after a power loss of 3 queens and 2 hives: first answer after %d ms, all well after %d ms\n", routed.Milliseconds(), time.Since(started).Milliseconds())
	ids := func(ws []core.Worker) (list []string) {
		for _, w := range ws {
			list = append(list, w.ID)
		}
		slices.Sort(list)
		return list
	}
	must.Eq(t, ids(before), ids(asJSON[[]core.Worker](stays, "ps")))
	tokens := asJSON[[]core.Token](stays, "token", "list")
	must.True(t, slices.ContainsFunc(tokens, func(x core.Token) bool { return x.ID == reader.ID && x.Name == "survivor" }))
	for _, n := range c.queens() {
		must.StrContains(t, n.must("infer", "--model", "rbee-tiny", "--prompt", "What is a queen?"), "coordinates")
	}
}

// keptCertificate returns the certificate of a node, as a copy of its disk contains it.
func keptCertificate(t testing.TB, n *node) tls.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(n.dir, "cluster", "node.pem"), filepath.Join(n.dir, "cluster", "node.key"))
	must.NoError(t, err)
	return pair
}

// runFor is n.run with a timeout, for what must not wait.
func (n *node) runFor(limit time.Duration, args ...string) (result, time.Duration) {
	n.c.t.Helper()
	ctx, cancel := context.WithTimeout(n.c.t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(binDir(n.c.t), "rbee"), args...)
	cmd.Env = append([]string{"RBEE_TOKEN=" + n.c.token, "RBEE_ADDR=" + n.url(), "RBEE_CACERT=" + filepath.Join(n.dir, "cluster", "ca.pem")}, n.env...)
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	cmd.WaitDelay = time.Second
	began := time.Now()
	must.NoError(n.c.t, cmd.Start())
	_ = cmd.Wait()
	if ctx.Err() != nil {
		n.c.t.Fatalf("rbee %s takes longer than %s", strings.Join(args, " "), limit)
	}
	return result{out.String(), talk.String(), cmd.ProcessState.ExitCode()}, time.Since(began)
}

// conversation asks one queen something and continues from its answer at another one, which finds
// it by its id.
func conversation(t *testing.T, first, second *node) {
	t.Helper()
	post := func(n *node, body string) (id string) {
		a := n.ask(http.MethodPost, "/v1/responses", body, patience)
		must.Eq(t, http.StatusOK, a.code, must.Sprint(a.body))
		var v struct{ ID string }
		must.NoError(t, json.Unmarshal([]byte(a.body), &v))
		return v.ID
	}
	id := post(first, `{"model":"rbee-tiny","input":"What is a queen?","max_output_tokens":8}`)
	post(second, `{"model":"rbee-tiny","previous_response_id":"`+id+`","input":"What is a hive?","max_output_tokens":8}`)
	must.Eq(t, http.StatusOK, second.ask(http.MethodDelete, "/v1/responses/"+id, "", patience).code)
	must.Eq(t, http.StatusNotFound, first.get("/v1/responses/"+id).code)
}

// Every operation works through every queen, whichever leads, and at once after another queen
// acknowledged the previous one.
func TestOperationsThroughEveryQueen(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(3, 1)
	queens := c.queens()
	for i, q := range queens {
		next := c.client(queens[(i+1)%len(queens)])
		out := asJSON[core.SpawnResult](q, "worker", "spawn", "--model", "rbee-tiny", "--hive", "hive-1")
		conversation(t, q, queens[(i+1)%len(queens)])
		made := asJSON[core.NewToken](q, "token", "create", "--type", "api", "--scope", "read")
		_, err := next.RevokeToken(t.Context(), made.ID)
		must.NoError(t, err)
		_, err = c.client(q).DrainHive(t.Context(), "hive-1", true)
		must.NoError(t, err)
		h, err := next.DrainHive(t.Context(), "hive-1", false)
		must.NoError(t, err)
		must.False(t, h.Draining)
		q.must("worker", "retire", out.Worker.ID, "--yes")
		q.must("operator", "raft", "transfer")
	}
	c.awaitHealth(3, 1)
	asJSON[core.SpawnResult](queens[0], "worker", "spawn", "--model", "rbee-tiny", "--hive", "hive-1")
	limitedToken(t, queens)
}

// limitedToken floods all queens with one token and checks that its limit holds across them; then
// the token gets a new secret, which every queen accepts.
func limitedToken(t *testing.T, queens []*node) {
	t.Helper()
	const limit = 20
	made := asJSON[core.NewToken](queens[0], "token", "create", "--name", "team", "--model", "rbee-tiny", "--limit", "20 requests/hour", "--expires", "1d")
	must.Eq(t, []string{"rbee-tiny"}, made.Models)
	post := func(n *node, token, model string) (*http.Response, string) {
		body := `{"model":"` + model + `","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}`
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, n.url()+"/v1/chat/completions", strings.NewReader(body))
		must.NoError(t, err)
		r.Header.Set("Authorization", "Bearer "+token)
		resp, err := n.c.httpClient().Do(r)
		must.NoError(t, err)
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		must.NoError(t, err)
		return resp, string(text)
	}
	var admitted, refused atomic.Int32
	var wg sync.WaitGroup
	for _, n := range queens {
		wg.Go(func() {
			for range limit / 2 {
				resp, text := post(n, made.Secret, "rbee-tiny")
				must.Eq(t, "20", resp.Header.Get("x-ratelimit-limit-requests"))
				switch resp.StatusCode {
				case http.StatusOK:
					admitted.Add(1)
				case http.StatusTooManyRequests:
					refused.Add(1)
					must.StrContains(t, text, "rate_limit_exceeded")
					must.NotEq(t, "", resp.Header.Get("Retry-After"))
				default:
					t.Errorf("status %d: %s", resp.StatusCode, text)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d requests of %d, %d refused", admitted.Load(), limit, refused.Load())
	must.Between(t, limit, admitted.Load(), limit+1)
	resp, _ := post(queens[1], made.Secret, "nothing-else")
	must.Eq(t, http.StatusNotFound, resp.StatusCode)

	renewed := asJSON[core.NewToken](queens[1], "token", "rotate", made.ID, "--overlap", "0")
	for _, n := range queens {
		resp, _ := post(n, renewed.Secret, "rbee-tiny")
		must.Eq(t, http.StatusTooManyRequests, resp.StatusCode, must.Sprint("a new secret has the same count"))
		resp, _ = post(n, made.Secret, "rbee-tiny")
		must.Eq(t, http.StatusUnauthorized, resp.StatusCode)
	}
}
