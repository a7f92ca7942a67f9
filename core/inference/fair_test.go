package inference

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/admission"
)

// farm is one worker whose slots several queens share. It takes a millisecond per token.
type farm struct {
	slots int

	mu      sync.Mutex // guards below
	running int
	random  *rand.Rand
	wg      sync.WaitGroup
}

func (f *farm) Route(_ context.Context, q Query) (Lease, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running >= f.slots {
		return Lease{}, &Busy{Model: "tiny"}
	}
	f.running++
	return NewLease([]core.Candidate{{Worker: core.Worker{ID: "w", Hive: "h", Model: "tiny", Nonce: "n"}}}, nil, nil, func(Outcome) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.running--
	}), nil
}

func (f *farm) dial(context.Context, core.Worker) (net.Conn, error) {
	near, far := net.Pipe()
	f.wg.Go(func() {
		defer far.Close()
		in := bufio.NewReader(far)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			f.mu.Lock()
			tokens := 20 + f.random.IntN(400)
			f.mu.Unlock()
			time.Sleep(time.Duration(tokens) * time.Millisecond)
			body := fmt.Sprintf(`{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%d}}`, tokens)
			if _, err := fmt.Fprintf(far, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
				return
			}
		}
	})
	return near, nil
}

// usageOf is a client that sums the tokens it received.
type usageOf struct {
	sink
	add func(tokens int)
}

func (u *usageOf) Answer(a Answer) {
	var n int
	_, _ = fmt.Sscanf(string(a.Body[strings.Index(string(a.Body), "completion_tokens"):]), `completion_tokens":%d`, &n)
	u.add(n)
}

// crowd runs clients of two keys against three queens for a minute, and returns the tokens of each
// key and the number of refused requests.
func crowd(t *testing.T, clients map[string]int, weights map[string]int64) (got map[string]int, refused map[string]int) {
	t.Helper()
	f := &farm{slots: 4, random: rand.New(rand.NewPCG(1, 2))}
	var queens []*Service
	for range 3 {
		queens = append(queens, New(Options{Router: f, Dial: f.dial, QueueLimit: 32}))
	}
	got, refused = map[string]int{}, map[string]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	began := time.Now()
	for key, n := range clients {
		for i := range n {
			wg.Go(func() {
				for time.Since(began) < time.Minute {
					c := &usageOf{add: func(tokens int) {
						mu.Lock()
						defer mu.Unlock()
						got[key] += tokens
					}}
					err := queens[i%3].Serve(context.Background(), Request{
						ID: "r", Path: "/v1/chat/completions", Body: []byte(askTiny), At: time.Now(), Key: key, Weight: weights[key],
					}, c)
					if err != nil {
						mu.Lock()
						refused[key]++
						mu.Unlock()
						time.Sleep(time.Second)
					}
				}
			})
		}
	}
	wg.Wait()
	for _, q := range queens {
		must.MapLen(t, 0, q.lines.byName)
		must.MapLen(t, 0, q.lines.names)
		q.Close()
	}
	f.wg.Wait()
	return got, refused
}

// Two keys, one of them greedy, at three queens: each gets half of the tokens within 10 %, and the
// modest one is never refused because of the other's load.
func TestFairShares(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		got, refused := crowd(t, map[string]int{"greedy": 150, "polite": 12}, nil)
		share := float64(got["polite"]) / float64(got["polite"]+got["greedy"])
		t.Logf("tokens in a minute: %v, the share of polite %.3f; refused: %v", got, share, refused)
		must.Between(t, 0.45, share, 0.55)
		must.Zero(t, refused["polite"])
	})
}

func TestFairSharesByPriority(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		got, _ := crowd(t, map[string]int{"normal": 60, "high": 60}, map[string]int64{"high": core.PriorityHigh.Weight()})
		ratio := float64(got["high"]) / float64(got["normal"])
		t.Logf("tokens in a minute: %v, %.2f times", got, ratio)
		must.Between(t, 3.2, ratio, 4.8)
	})
}

// A model has one line for all of its names: two names do not get two shares.
func TestOneLineForAllNames(t *testing.T) {
	t.Parallel()
	l := lines{limit: 2}
	a, b, c := newTicket("a"), newTicket("b"), newTicket("c")
	_, ok := l.join("alias", "model", a)
	must.True(t, ok)
	must.True(t, l.waits("alias"))
	_, ok = l.join("model", "model", b)
	must.True(t, ok)
	must.MapLen(t, 1, l.byName)
	_, ok = l.join("other alias", "model", c)
	must.False(t, ok)
	must.Eq(t, map[string]int{"model": 2}, l.waiting())
	l.leave("model", b, true)
	l.leave("alias", a, false)
	must.MapLen(t, 0, l.byName)
	must.MapLen(t, 0, l.names)
}

func newTicket(key string) *admission.Ticket[chan struct{}] {
	return &admission.Ticket[chan struct{}]{Key: key, Value: make(chan struct{}, 1)}
}
