package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// envOr returns a number that `make cluster` sets, for a longer run than that of the tests.
func envOr(t testing.TB, name string, short int) int {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return short
	}
	n, err := strconv.Atoi(v)
	must.NoError(t, err)
	return n
}

// load is inference and registry writes against the queens of a cluster, with outcomes counted per
// queen.
type load struct {
	c    *cluster
	http *http.Client

	mu       sync.Mutex         // guards below
	complete map[*node]int      // streams and requests that ended properly
	broken   map[*node][]string // why the others did not
	open     int                // streams that have begun and not ended
	acks     []time.Time        // of registry writes
}

func newLoad(c *cluster) *load {
	return &load{c: c, http: c.httpClient(), complete: map[*node]int{}, broken: map[*node][]string{}}
}

func (l *load) note(n *node, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.broken[n] = append(l.broken[n], err.Error())
		return
	}
	l.complete[n]++
}

// ask sends a chat request and reads the whole answer.
func (l *load) ask(ctx context.Context, n *node, stream bool, maxTokens int) error {
	body, err := json.Marshal(map[string]any{
		"model": "rbee-tiny", "stream": stream, "max_tokens": maxTokens, "temperature": 0,
		"messages": []map[string]string{{"role": "user", "content": "Tell me a story about the queen and her hives."}},
	})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.url()+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+l.c.token)
	resp, err := l.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
		return fmt.Errorf("status %d: %s", resp.StatusCode, text)
	}
	if !stream {
		var answer struct {
			Choices []struct {
				Message struct{ Content string }
			}
		}
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			return err
		}
		if len(answer.Choices) != 1 {
			return fmt.Errorf("%d choices", len(answer.Choices))
		}
		return nil
	}
	l.mu.Lock()
	l.open++
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.open--
		l.mu.Unlock()
	}()
	lines := bufio.NewScanner(resp.Body)
	done := false
	for lines.Scan() {
		switch data, isData := strings.CutPrefix(lines.Text(), "data: "); {
		case isData && data == "[DONE]":
			done = true
		case isData && strings.HasPrefix(data, `{"error"`):
			return fmt.Errorf("error in the stream: %s", data)
		}
	}
	switch {
	case lines.Err() != nil:
		return lines.Err()
	case !done:
		return fmt.Errorf("the stream ended without [DONE]")
	}
	return nil
}

// streams keeps n streams open until stop, spread over the queens; a stream that has begun is read
// to its end.
func (l *load) streams(wg *sync.WaitGroup, stop <-chan struct{}, n int, queens []*node) {
	for i := range n {
		q := queens[i%len(queens)]
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if !q.running() {
					return
				}
				l.note(q, l.ask(context.Background(), q, true, 160))
			}
		})
	}
}

// requests sends n short requests a second until stop, spread over the queens.
func (l *load) requests(wg *sync.WaitGroup, stop <-chan struct{}, perSecond int, queens []*node) {
	wg.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			q := queens[i%len(queens)]
			if !q.running() {
				continue
			}
			wg.Go(func() { l.note(q, l.ask(context.Background(), q, false, 2)) })
		}
	})
}

// writes changes the registry through one queen, one write after the other, and records when each
// was acknowledged.
func (l *load) writes(wg *sync.WaitGroup, stop <-chan struct{}, q *node) {
	cl := l.c.client(q)
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			made, err := cl.CreateToken(ctx, core.TokenRequest{Kind: core.TokenAPI, Name: "load", Scopes: []core.Scope{core.ScopeRead}})
			if err == nil {
				l.ack()
				if _, err = cl.RevokeToken(ctx, made.ID); err == nil {
					l.ack()
				}
			}
			cancel()
		}
	})
}

func (l *load) ack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acks = append(l.acks, time.Now())
}

// gap returns the longest time without an acknowledged write that ended after at.
func (l *load) gap(at time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var longest time.Duration
	for i := 1; i < len(l.acks); i++ {
		if l.acks[i].After(at) {
			longest = max(longest, l.acks[i].Sub(l.acks[i-1]))
		}
	}
	return longest
}

// serve starts workers with rbee-tiny on every hive.
func (c *cluster) serve() {
	c.t.Helper()
	for _, n := range c.nodes {
		if n.hive {
			c.nodes[0].must("worker", "spawn", "--model", "rbee-tiny", "--hive", n.name)
		}
	}
}

// The leader is killed under load: requests through the other queens are unaffected. `make cluster`
// runs it with 50 streams and 50 requests a second.
func TestKilledLeader(t *testing.T) {
	streams, perSecond, seconds := envOr(t, "RBEE_CLUSTER_STREAMS", 6), envOr(t, "RBEE_CLUSTER_RPS", 5), envOr(t, "RBEE_CLUSTER_SECONDS", 4)
	c := newCluster(t)
	c.slots = max(8, streams)
	c.start(3, 2)
	c.serve()
	for _, q := range c.queens() {
		answer := q.must("infer", "--model", "rbee-tiny", "--prompt", "What is a queen?")
		must.StrContains(t, answer, "coordinates")
	}

	leader := c.leader()
	var survivors []*node
	for _, q := range c.queens() {
		if q != leader {
			survivors = append(survivors, q)
		}
	}
	l := newLoad(c)
	defer l.http.CloseIdleConnections()
	var wg sync.WaitGroup
	stop := make(chan struct{})
	l.streams(&wg, stop, streams, c.queens())
	l.requests(&wg, stop, perSecond, c.queens())
	l.writes(&wg, stop, survivors[0])
	pause := time.NewTimer(time.Duration(seconds) * time.Second / 2)
	<-pause.C
	l.mu.Lock()
	open := l.open
	l.mu.Unlock()
	killed := time.Now()
	leader.kill()
	pause.Reset(time.Duration(seconds) * time.Second / 2)
	<-pause.C
	close(stop)
	wg.Wait()

	complete, broken := 0, 0
	for _, q := range survivors {
		complete += l.complete[q]
		broken += len(l.broken[q])
		for _, why := range l.broken[q] {
			t.Errorf("through %s: %s", q.name, why)
		}
	}
	gap := l.gap(killed)
	fmt.Printf("killed the leader %s with %d streams open and %d requests/s:\n", leader.name, open, perSecond)
	fmt.Printf("  on surviving queens: broken streams and failed requests %d, complete %d\n", broken, complete)
	fmt.Printf("  on the killed queen: complete %d, cut %d\n", l.complete[leader], len(l.broken[leader]))
	fmt.Printf("  write gap %d ms (%d writes)\n", gap.Milliseconds(), len(l.acks))
	must.Positive(t, complete)
	must.Positive(t, open)
	must.Positive(t, gap)
	must.NotEq(t, leader, c.leader())

	// It rejoins as a follower.
	leader.start()
	leader.awaitAnswer()
	c.await(func(s core.Status) error {
		if len(s.Problems) > 0 {
			return fmt.Errorf("problems: %v", s.Problems)
		}
		return nil
	})
	must.StrContains(t, leader.must("infer", "--model", "rbee-tiny", "--prompt", "What is a queen?"), "coordinates")
}
