package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// answer is a complete HTTP response.
type answer struct {
	code   int
	header http.Header
	body   string
	took   time.Duration
}

// get sends a queen a GET request.
func (n *node) get(path string) answer { return n.ask(http.MethodGet, path, "", 10*time.Second) }

// ask sends a queen a request.
func (n *node) ask(method, path, body string, limit time.Duration) answer {
	n.c.t.Helper()
	ctx, cancel := context.WithTimeout(n.c.t.Context(), limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, n.url()+path, strings.NewReader(body))
	must.NoError(n.c.t, err)
	req.Header.Set("Authorization", "Bearer "+n.c.token)
	hc := n.c.httpClient()
	defer hc.CloseIdleConnections()
	began := time.Now()
	resp, err := hc.Do(req)
	must.NoError(n.c.t, err)
	defer resp.Body.Close()
	got, err := io.ReadAll(bufio.NewReader(resp.Body))
	must.NoError(n.c.t, err)
	return answer{resp.StatusCode, resp.Header, string(got), time.Since(began)}
}

// A hive that drains gets no new request and finishes the running ones; a hive whose agent is
// frozen is shown with the failing paths.
func TestDrainAndStatusOfHives(t *testing.T) {
	c := newCluster(t)
	c.start(3, 2)
	c.serve()
	first, hive := c.nodes[0], c.nodeNamed("hive-1")
	cl := c.allClient()
	workers := map[string]string{} // worker to its hive
	for _, w := range asJSON[[]core.Worker](first, "ps") {
		workers[w.ID] = w.Hive
	}
	// Streams run on both hives; those of the drained hive run on.
	began, proceed := make(chan string, 8), make(chan struct{})
	ended := make(chan error, 8)
	for range 6 {
		go func() {
			worker := ""
			chunks := 0
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			err := c.streamSlowly(ctx, cl, 300, func() {
				if chunks++; chunks == 1 {
					began <- worker
					<-proceed
				}
			}, &worker)
			ended <- err
		}()
	}
	drained := 0
	for range 6 {
		if workers[<-began] == hive.id() {
			drained++
		}
	}
	must.Positive(t, drained)
	first.must("hive", "drain", "hive-1")
	must.True(t, asJSON[core.Hive](first, "hive", "get", "hive-1").Draining)
	for _, q := range c.queens() { // every queen's replica has it
		coretest.Eventually(t, patience, func() error {
			if !strings.Contains(q.get("/v1/hives/hive-1?consistency=stale").body, `"draining":true`) {
				return errors.New("it does not drain there")
			}
			return nil
		})
		one := c.client(q)
		for range 4 {
			_, a, err := one.Chat(t.Context(), tinyQuestion(2))
			must.NoError(t, err)
			must.NotEq(t, hive.id(), workers[a.Worker])
		}
	}
	refused(t, first.run("worker", "spawn", "--model", "rbee-tiny", "--hive", "hive-1"), 1, "drain")
	close(proceed)
	for range 6 {
		must.NoError(t, <-ended)
	}
	first.must("hive", "drain", "hive-1", "--undo")
	coretest.Eventually(t, patience, func() error {
		for range 8 {
			if _, a, err := cl.Chat(t.Context(), tinyQuestion(2)); err != nil || workers[a.Worker] == hive.id() {
				return err
			}
		}
		return errors.New("no request reaches the hive again")
	})

	refresh := asJSON[core.RefreshResult](first, "hive", "refresh", "hive-1")
	must.SliceNotEmpty(t, refresh.After)

	// It is frozen and unreachable: all queens report it, each with the time since when.
	health := asJSON[core.HiveHealth](first, "hive", "status", "hive-1")
	must.True(t, health.Reachable)
	must.SliceLen(t, 3, health.Queens)
	for _, q := range health.Queens {
		must.True(t, q.Linked && q.Gossip == "alive" && q.Problem == "", must.Sprintf("%+v", q))
	}
	must.NoError(t, hive.signal(syscall.SIGSTOP))
	frozen := time.Now()
	c.await(func(s core.Status) error {
		for _, h := range s.Hives {
			if h.ID == hive.id() && h.Status != core.HiveDown {
				return fmt.Errorf("the hive is %s", h.Status)
			}
		}
		return nil
	})
	fmt.Printf("a frozen hive was down after %d ms\n", time.Since(frozen).Milliseconds())
	r, took := first.runFor(8*time.Second, "hive", "status", "hive-1", "--format", "json")
	must.Eq(t, 0, r.code, must.Sprint(r.stderr))
	text := first.must("hive", "status", "hive-1")
	fmt.Printf("hive status of a frozen hive, after %d ms:\n%s", took.Milliseconds(), text)
	must.StrContains(t, text, "Reachable  no: ")
	must.NoError(t, hive.signal(syscall.SIGCONT))
	c.awaitHealth(3, 2)
}

// streamSlowly reads a stream and calls each for every chunk; worker is set before the first one.
func (c *cluster) streamSlowly(ctx context.Context, cl *client.Client, tokens int, each func(), worker *string) error {
	return cl.ChatStream(ctx, tinyQuestion(tokens), func(openai.ChatChunk) error {
		each()
		return nil
	}, client.OnAnswer(func(a client.Answer) { *worker = a.Worker }))
}

// The gossip keys are rotated under load: no node is lost and no request fails. A hive and a queen
// that were away meanwhile rejoin.
func TestKeyRotation(t *testing.T) {
	c := newCluster(t)
	c.start(3, 2)
	c.nodes[0].must("worker", "spawn", "--model", "rbee-tiny", "--hive", "hive-1")
	first := c.nodes[0]
	away := []*node{c.nodeNamed("queen-3"), c.nodeNamed("hive-2")}
	for _, n := range away {
		n.kill()
	}
	tr := newTraffic(c.client(c.queens()...))
	tr.answers(150 * time.Millisecond)
	old := asJSON[core.Keyring](first, "operator", "keyring", "list")
	must.SliceLen(t, 1, old.Keys)
	installed := asJSON[core.Keyring](first, "operator", "keyring", "install")
	must.SliceLen(t, 2, installed.Keys)
	must.Eq(t, old.Primary, installed.Primary)
	fresh := installed.Keys[1]
	refused(t, first.run("operator", "keyring", "remove", old.Primary, "--yes"), 1, "in use")
	first.must("operator", "keyring", "use", fresh)
	left := asJSON[core.Keyring](c.nodes[1], "operator", "keyring", "remove", old.Primary, "--yes")
	must.Eq(t, []string{fresh}, left.Keys)
	c.watchMembers(2*time.Second, "queen-1", "queen-2", "hive-1")
	tr.end()
	must.SliceEmpty(t, tr.failed)
	must.Positive(t, tr.done["answer"])

	// Their disks still have the old keys.
	for _, n := range away {
		n.start()
	}
	away[0].awaitAnswer()
	c.awaitHealth(3, 2)
	c.watchMembers(time.Second, "queen-1", "queen-2", "queen-3", "hive-1", "hive-2")
	for _, q := range c.queens() {
		for _, s := range asJSON[core.HiveHealth](q, "hive", "status", "hive-2").Queens {
			must.Eq(t, "alive", s.Gossip)
		}
		must.Eq(t, fresh, asJSON[core.Keyring](q, "operator", "keyring", "list").Primary)
	}
	// Now they are on disk, for the next start.
	for _, n := range c.nodes {
		b, err := os.ReadFile(filepath.Join(n.dir, "cluster", "gossip.key"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		must.NoError(t, err)
		must.Positive(t, len(b))
	}
}

// watchMembers checks for a while that all of these are alive.
func (c *cluster) watchMembers(d time.Duration, names ...string) {
	c.t.Helper()
	cl := c.client(c.nodes[0])
	until := time.Now().Add(d)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for time.Now().Before(until) {
		s, err := cl.Status(c.t.Context())
		must.NoError(c.t, err)
		for _, q := range s.Queens {
			if slices.Contains(names, q.Name) && q.Gossip != "alive" {
				c.t.Fatalf("%s is %s", q.Name, q.Gossip)
			}
		}
		for _, h := range s.Hives {
			if slices.Contains(names, h.Name) && h.Status != core.HiveReady {
				c.t.Fatalf("%s is %s", h.Name, h.Status)
			}
		}
		<-tick.C
	}
}

// Reads of every consistency, from the leader, a follower, and a queen without a majority.
func TestConsistency(t *testing.T) {
	c := newCluster(t)
	c.start(3, 1)
	c.serve()
	leader := c.leader()
	var follower *node
	for _, q := range c.queens() {
		if q != leader {
			follower = q
		}
	}
	for _, q := range []*node{leader, follower} {
		for _, consistency := range []string{"", "default", "stale", "linearizable"} {
			path := "/v1/hives"
			args := []string{"hive", "list", "--format", "json"}
			if consistency != "" {
				path += "?consistency=" + consistency
				args = append(args, "--consistency", consistency)
			}
			a := q.get(path)
			must.Eq(t, 200, a.code, must.Sprint(a.body))
			must.StrContains(t, a.body, "hive-1")
			must.Eq(t, leader.id(), a.header.Get("X-Rbee-Leader"))
			must.NotEq(t, "", a.header.Get("X-Rbee-Index"))
			must.NotEq(t, "", a.header.Get("X-Rbee-Last-Contact"))
			must.Eq(t, fmt.Sprint(consistency == "stale" && q != leader), a.header.Get("X-Rbee-Stale"), must.Sprintf("%s at %s", consistency, q.name))
			must.StrContains(t, q.must(args...), "hive-1")
		}
		a := q.get("/v1/hives?consistency=eventual")
		must.Eq(t, 400, a.code)
		must.StrContains(t, a.body, "linearizable")
		refused(t, q.run("hive", "list", "--consistency", "eventual"), 2, "linearizable")
	}

	// A minority of one answers from its old replica, but refuses reads that must be current.
	for _, q := range c.queens() {
		if q != follower {
			must.NoError(t, q.signal(syscall.SIGSTOP))
		}
	}
	stale := follower.get("/v1/hives?consistency=stale")
	must.Eq(t, 200, stale.code)
	must.StrContains(t, stale.body, "hive-1")
	must.Eq(t, "true", stale.header.Get("X-Rbee-Stale"))
	must.StrContains(t, follower.must("hive", "list", "--stale"), "hive-1")
	var wg sync.WaitGroup
	for _, consistency := range []string{"default", "linearizable"} {
		wg.Go(func() {
			a := follower.get("/v1/hives?consistency=" + consistency)
			test.Eq(t, 503, a.code, test.Sprint(a.body))
			test.Less(t, 6*time.Second, a.took)
			test.StrContains(t, a.body, "consistency=stale")
			fmt.Printf("without a majority: a %s read refused after %d ms\n", consistency, a.took.Milliseconds())
		})
		wg.Go(func() {
			r, took := follower.runFor(8*time.Second, "hive", "list", "--consistency", consistency)
			test.Eq(t, 1, r.code)
			test.StrContains(t, r.stderr, "rbee status")
			test.Less(t, 6*time.Second, took)
		})
	}
	wg.Wait()
	r, took := follower.runFor(6*time.Second, "status")
	must.Eq(t, 0, r.code, must.Sprint(r.stderr))
	must.StrContains(t, r.stdout, "PROBLEM: ")
	must.StrContains(t, r.stdout, "stale: ")
	fmt.Printf("without a majority: status after %d ms\n", took.Milliseconds())
	must.StrContains(t, follower.must("infer", "--model", "rbee-tiny", "--prompt", "What is a queen?"), "coordinates")
	for _, q := range c.nodes {
		if q.queen {
			must.NoError(t, q.signal(syscall.SIGCONT))
		}
	}
	c.awaitHealth(3, 1)
}

// A worker is retired, and the leader dies while the worker's last request runs: the retirement
// still completes.
func TestRetireSurvivesTheLeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(3, 1)
	c.serve()
	leader := c.leader()
	via := c.followers(leader)[0]
	cl := c.client(via)
	worker := asJSON[[]core.Process](via, "worker", "process", "list", "--hive", "hive-1")[0]
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	began, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		first, name := sync.OnceFunc(func() { close(began) }), ""
		ended <- c.streamSlowly(ctx, cl, 300, first, &name)
	}()
	select {
	case <-began:
	case err := <-ended:
		t.Fatal(err)
	}
	must.NoError(t, syscall.Kill(worker.PID, syscall.SIGSTOP)) // freezes it in the middle of its answer
	killed := make(chan error, 1)
	go func() {
		defer func() { _ = syscall.Kill(worker.PID, syscall.SIGCONT) }()
		for ctx.Err() == nil {
			list, err := cl.Workers(ctx)
			if err == nil && len(list) == 1 && list[0].State == core.WorkerRetiring {
				leader.kill()
				killed <- nil
				return
			}
			sleep(20 * time.Millisecond)
		}
		killed <- errors.New("the worker never retired")
	}()
	via.must("worker", "retire", worker.WorkerID, "--yes")
	must.NoError(t, <-killed)
	must.NoError(t, <-ended)
	for _, q := range c.queens() {
		coretest.Eventually(t, patience, func() error {
			if strings.Contains(q.get("/v1/workers?consistency=stale").body, worker.WorkerID) {
				return errors.New("the worker is still in a replica")
			}
			return nil
		})
	}
}
