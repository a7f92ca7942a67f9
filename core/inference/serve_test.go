package inference

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

const (
	wholeAnswer  = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
	streamAnswer = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
	askTiny      = `{"model":"tiny","messages":[]}`
	streamTiny   = `{"model":"tiny","stream":true,"messages":[]}`
)

// fullText is a worker's answer for a full queue.
func fullText() string {
	body := `{"error":{"message":"full","type":"x","param":null,"code":"overloaded"}}`
	return fmt.Sprintf("HTTP/1.1 503 Busy\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// behaviour is what a fake worker does with a request that it has read. nil: it is unreachable.
type behaviour func(c net.Conn)

func says(text string) behaviour {
	return func(c net.Conn) { _, _ = io.WriteString(c, text) }
}

func dies(net.Conn) {}

// bench is a Service with fake workers of model "tiny", in the order in which they are chosen.
type bench struct {
	*Service
	slots   int          // total; 0: no limit
	signs   func() Signs // of all workers; nil: no signs
	context []int        // of each worker; nil: not reported

	mu      sync.Mutex // guards below
	workers []behaviour
	running int
	asked   []string        // worker ids
	routed  context.Context // of the latest Route
	terms   []Terms         // of every Route
	failed  []string
	busy    map[string]time.Time
	wg      sync.WaitGroup
}

func newBench(o Options, workers ...behaviour) *bench {
	b := &bench{workers: workers, busy: map[string]time.Time{}}
	o.Router, o.Dial = b, b.dial
	b.Service = New(o)
	return b
}

func (b *bench) Route(ctx context.Context, q Query) (Lease, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.routed, b.terms = ctx, append(b.terms, q.Terms)
	var ranked []core.Candidate
	full := b.slots > 0 && b.running >= b.slots
	for i := range b.workers {
		w := core.Worker{ID: fmt.Sprintf("w%d", i), Hive: "h", Model: "tiny", Nonce: fmt.Sprint(i)}
		if b.context != nil {
			w.ContextTokens = b.context[i]
		}
		tried := q.ContextOver > 0 && w.ContextTokens <= q.ContextOver
		for _, t := range q.Tried {
			tried = tried || t.Nonce == w.Nonce
		}
		switch {
		case tried:
		case b.busy[w.ID].After(time.Now()):
			full = true
		default:
			ranked = append(ranked, core.Candidate{Worker: w, Reason: "test"})
		}
	}
	switch {
	case full && (len(ranked) == 0 || b.slots > 0):
		return Lease{}, &Busy{Model: "tiny"}
	case len(ranked) == 0:
		return Lease{}, core.Errorf(core.Unavailable, "no worker")
	}
	b.running++
	id := ranked[0].Worker.ID
	return NewLease(ranked, nil, b.signs, func(o Outcome) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.running--
		if o.Failed {
			b.failed = append(b.failed, id)
		}
		if o.Busy > 0 {
			b.busy[id] = time.Now().Add(o.Busy)
		}
	}), nil
}

func (b *bench) dial(_ context.Context, w core.Worker) (net.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = append(b.asked, w.ID)
	var n int
	_, _ = fmt.Sscanf(w.ID, "w%d", &n)
	does := b.workers[n]
	if does == nil {
		return nil, errors.New("refused")
	}
	near, far := net.Pipe()
	b.wg.Go(func() {
		defer far.Close()
		r, err := http.ReadRequest(bufio.NewReader(far))
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		does(far)
	})
	return near, nil
}

func (b *bench) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.asked)
}

// ask sends a request and returns its error and the status that the client saw.
func (b *bench) ask(body string) (status int, err error) {
	c := &sink{}
	err = b.Serve(context.Background(), Request{ID: "r", Path: "/v1/chat/completions", Body: []byte(body), At: time.Now()}, c)
	return c.status, err
}

func (b *bench) end() {
	b.Close()
	b.wg.Wait()
}

// sink is a Client.
type sink struct {
	status int
	text   strings.Builder
}

func (*sink) Asked(core.Worker, string) {}

func (s *sink) Send(block []byte) error {
	s.text.Write(block)
	return nil
}

func (s *sink) Answer(a Answer) { s.status = a.Status }

func (*sink) Fail(error) int { return 0 }

// One request does not go through all workers in turn.
func TestServeBoundsAttempts(t *testing.T) {
	t.Parallel()
	ok := says(wholeAnswer)
	cut := says(streamAnswer + oneToken)
	for _, c := range []struct {
		name    string
		workers []behaviour
		asked   int
		kind    core.Kind
	}{
		{"all die of it", []behaviour{dies, dies, dies, dies, ok}, 2, core.WorkerLost},
		{"one dies of it", []behaviour{dies, ok}, 2, ""},
		{"all die before a token", []behaviour{says(streamAnswer), says(streamAnswer), says(streamAnswer), ok}, 2, core.WorkerLost},
		{"none is reached", []behaviour{nil, nil, nil, ok}, 3, core.Unavailable},
		{"two are not reached", []behaviour{nil, nil, ok}, 3, ""},
		{"one is not reached, then all die", []behaviour{nil, dies, dies, ok}, 3, core.WorkerLost},
		{"one dies, one is not reached", []behaviour{dies, nil, ok}, 2, core.Unavailable},
		{"it dies after a token", []behaviour{cut, ok}, 1, core.WorkerLost},
		{"only one, and it dies", []behaviour{dies}, 1, core.WorkerLost},
		{"all answer 502", []behaviour{says("HTTP/1.1 502 X\r\nContent-Length: 0\r\n\r\n"), says("HTTP/1.1 502 X\r\nContent-Length: 0\r\n\r\n"), says("HTTP/1.1 502 X\r\nContent-Length: 0\r\n\r\n"), ok}, 3, core.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(Options{}, c.workers...)
			defer b.end()
			_, err := b.ask(streamTiny)
			must.Eq(t, c.kind, core.KindOf(err))
			must.Len(t, c.asked, b.asked)
			must.Zero(t, b.running)
		})
	}
}

// The context that Route receives ends with the request.
func TestServeEndsRoute(t *testing.T) {
	t.Parallel()
	b := newBench(Options{}, says(streamAnswer+oneToken))
	defer b.end()
	_, err := b.ask(streamTiny)
	must.Error(t, err)
	must.Error(t, b.routed.Err())
}

// Dialling an unreachable worker fails after five seconds.
func TestServeDialDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := Options{Router: newBench(Options{}, nil), Dial: func(ctx context.Context, _ core.Worker) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		s := New(o)
		defer s.Close()
		began := time.Now()
		err := s.Serve(t.Context(), Request{ID: "r", Path: "/v1/chat/completions", Body: []byte(askTiny), At: time.Now()}, &sink{})
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.Eq(t, 5*time.Second, time.Since(began))
	})
}

// Failing requests are not all retried.
func TestServeRetryBudget(t *testing.T) {
	t.Parallel()
	b := newBench(Options{}, says("HTTP/1.1 502 X\r\nContent-Length: 0\r\n\r\n"), says(wholeAnswer))
	defer b.end()
	whole := 0
	for range 100 {
		if _, err := b.ask(askTiny); err == nil {
			whole++
		}
	}
	must.Between(t, retryReserve, whole, retryReserve+20)
	must.Eq(t, 100+whole, b.count())
}

// A request that killed two workers is refused for a while; others are not.
func TestServeRefusesDeadlyRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(Options{}, dies, dies, dies, dies, dies)
		defer b.end()
		_, err := b.ask(askTiny)
		must.Eq(t, core.WorkerLost, core.KindOf(err))
		must.Eq(t, 2, b.count())
		for range 3 {
			_, err = b.ask(askTiny)
			field, ok := errors.AsType[*FieldError](err)
			must.True(t, ok)
			must.Eq(t, codeRefused, field.Code)
			must.Eq(t, core.Invalid, core.KindOf(err))
		}
		must.Eq(t, 2, b.count())
		_, err = b.ask(`{"model":"tiny","messages":[1]}`)
		must.Eq(t, core.WorkerLost, core.KindOf(err))
		must.Eq(t, 4, b.count())
		time.Sleep(b.o.RefuseDeadly)
		_, err = b.ask(askTiny)
		must.Eq(t, core.WorkerLost, core.KindOf(err))
		must.Eq(t, 6, b.count())
	})
}

// A request that killed two workers is refused only to its own key: the same words from another key
// need not be an attack.
func TestServeDeadlyPerKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(Options{}, dies, dies, dies, dies)
		defer b.end()
		ask := func(key string) error {
			return b.Serve(t.Context(), Request{ID: "r", Key: key, Path: "/v1/chat/completions", Body: []byte(askTiny), At: time.Now()}, &sink{})
		}
		must.Eq(t, core.WorkerLost, core.KindOf(ask("one")))
		must.Eq(t, core.Invalid, core.KindOf(ask("one")))
		must.Eq(t, core.WorkerLost, core.KindOf(ask("two")))
		must.Eq(t, 4, b.count())
	})
}

// A stream releases its body once it has begun, and still counts as deadly when its worker dies.
func TestServeReleasesBody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		head := "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
		cut := func(c net.Conn) {
			_, _ = io.WriteString(c, head+"data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n")
			<-goOn
		}
		b := newBench(Options{}, cut, cut, cut)
		defer b.end()
		var released, ended atomic.Int64
		body := `{"model":"tiny","stream":true,"messages":[{"role":"user","content":"` + strings.Repeat("x", releaseOver) + `"}]}`
		ask := func() error {
			defer ended.Add(1)
			return b.Serve(t.Context(), Request{ID: "r", Path: "/v1/chat/completions", Body: []byte(body), At: time.Now(), Release: func() { released.Add(1) }}, &sink{})
		}
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				err := ask()
				must.Eq(t, core.WorkerLost, core.KindOf(err), must.Sprint(err))
			})
		}
		synctest.Wait()
		must.Eq(t, 0, ended.Load())
		must.Eq(t, 2, released.Load())
		close(goOn)
		wg.Wait()
		must.Eq(t, core.Invalid, core.KindOf(ask()))
	})
}

// Answers that are not streamed are bounded, each and all together.
func TestServeAnswerMemory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		const half = 1 << 20
		slow := func(c net.Conn) {
			_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n{%s", 2*half, strings.Repeat(" ", half-1))
			<-goOn
			_, _ = io.WriteString(c, strings.Repeat(" ", half-1)+"}")
		}
		b := newBench(Options{AnswerMemory: 3 * half}, slow)
		defer b.end()
		var wg sync.WaitGroup
		wg.Go(func() {
			status, err := b.ask(askTiny)
			must.NoError(t, err)
			must.Eq(t, 200, status)
		})
		synctest.Wait()
		must.Between(t, half, b.answers.Load(), 2*half)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := b.Serve(ctx, Request{ID: "r", Path: "/v1/chat/completions", Body: []byte(askTiny), At: time.Now()}, &sink{})
		must.Eq(t, core.Overloaded, core.KindOf(err))
		must.SliceEmpty(t, b.failed)
		must.Between(t, half, b.answers.Load(), 2*half)
		close(goOn)
		wg.Wait()
		must.Zero(t, b.answers.Load())

		long := newBench(Options{}, func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{")
			space := []byte(strings.Repeat(" ", 1<<20))
			for {
				if _, err := c.Write(space); err != nil {
					return
				}
			}
		})
		defer long.end()
		_, err = long.ask(askTiny)
		must.Eq(t, core.TooLarge, core.KindOf(err))
		must.Zero(t, long.answers.Load())
	})
}

// Requests wait for a slot in order, up to the line's limit and no longer than the timeout.
func TestServeQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		b := newBench(Options{QueueLimit: 2, QueueTimeout: 5 * time.Second}, func(c net.Conn) {
			<-free
			_, _ = io.WriteString(c, wholeAnswer+"")
		})
		b.slots = 1
		defer b.end()
		var wg sync.WaitGroup
		ends := make([]error, 4)
		took := make([]time.Duration, 4)
		start := time.Now()
		for i := range 4 {
			wg.Go(func() {
				_, ends[i] = b.ask(askTiny)
				took[i] = time.Since(start)
			})
			synctest.Wait()
		}
		full, ok := errors.AsType[*OverloadError](ends[3]) // nothing else has ended
		must.True(t, ok)
		must.Eq(t, core.Overloaded, core.KindOf(full))
		must.Eq(t, codeOverloaded, full.Code)
		must.Between(t, time.Second, full.RetryAfter, time.Minute)
		must.Zero(t, took[3])
		time.Sleep(2 * time.Second)
		free <- struct{}{}
		synctest.Wait()
		must.NoError(t, ends[0])
		must.Eq(t, 2*time.Second, took[0])
		time.Sleep(4 * time.Second) // the next one runs, the last one has timed out
		synctest.Wait()
		late, ok := errors.AsType[*OverloadError](ends[2])
		must.True(t, ok, must.Sprint(ends[2]))
		must.Eq(t, core.DeadlineExceeded, core.KindOf(late))
		must.Eq(t, codeTimeout, late.Code)
		must.Eq(t, 5*time.Second, took[2])
		free <- struct{}{}
		wg.Wait()
		must.NoError(t, ends[1])
		must.MapLen(t, 0, b.lines.byName)
		must.MapLen(t, 0, b.lines.running)
		must.SliceEmpty(t, b.failed)
		must.Zero(t, b.running)
	})
}

// When a client leaves the line, the next one moves up.
func TestServeQueueClientGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		b := newBench(Options{}, func(c net.Conn) {
			<-free
			_, _ = io.WriteString(c, wholeAnswer)
		})
		b.slots = 1
		defer b.end()
		ctx, cancel := context.WithCancel(t.Context())
		ends := make([]error, 3)
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				of := t.Context()
				if i == 1 {
					of = ctx
				}
				ends[i] = b.Serve(of, Request{ID: "r", Path: "/v1/chat/completions", Body: []byte(askTiny), At: time.Now()}, &sink{})
			})
			synctest.Wait()
		}
		cancel()
		synctest.Wait()
		must.Eq(t, core.Cancelled, core.KindOf(ends[1]))
		free <- struct{}{}
		free <- struct{}{}
		wg.Wait()
		must.NoError(t, ends[0])
		must.NoError(t, ends[2])
	})
}

// A full worker counts as neither failed nor tried: its request waits.
func TestServeWorkerFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answers := []string{fullText(), fullText(), fullText(), fullText(), wholeAnswer}
		var mu sync.Mutex
		b := newBench(Options{}, func(c net.Conn) {
			mu.Lock()
			text := answers[0]
			answers = answers[1:]
			mu.Unlock()
			_, _ = io.WriteString(c, text)
		})
		defer b.end()
		start := time.Now()
		status, err := b.ask(askTiny)
		must.NoError(t, err)
		must.Eq(t, 200, status)
		must.Between(t, 4*fullBusy, time.Since(start), 8*fullBusy)
		must.SliceEmpty(t, b.failed)
		must.Zero(t, b.Records().Worker("0").Failures)

		answers = nil
		for range 1000 {
			answers = append(answers, fullText())
		}
		start = time.Now()
		_, err = b.ask(askTiny)
		late, ok := errors.AsType[*OverloadError](err)
		must.True(t, ok)
		must.Eq(t, core.DeadlineExceeded, core.KindOf(late))
		must.Between(t, b.o.QueueTimeout, time.Since(start), b.o.QueueTimeout+fullBusy)
	})
}

// A refusal because of a request's length is not a failure: a worker with a longer context is
// asked, and the refusal is passed on if there is none.
func TestServeContextLength(t *testing.T) {
	t.Parallel()
	body := `{"error":{"message":"too long","type":"x","param":null,"code":"context_length_exceeded"}}`
	short := says(fmt.Sprintf("HTTP/1.1 400 Bad\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	b := newBench(Options{}, short, short, says(wholeAnswer))
	b.context = []int{64, 64, 1024}
	defer b.end()
	status, err := b.ask(askTiny)
	must.NoError(t, err)
	must.Eq(t, 200, status)
	must.Eq(t, []string{"w0", "w2"}, b.asked)
	must.SliceEmpty(t, b.failed)
	must.Zero(t, b.Records().Worker("0").Failures)

	none := newBench(Options{}, short, short)
	none.context = []int{64, 64}
	defer none.end()
	status, err = none.ask(askTiny)
	must.NoError(t, err)
	must.Eq(t, 400, status)
	must.Eq(t, []string{"w0"}, none.asked)
}

func TestNotes(t *testing.T) {
	t.Parallel()
	var n notes
	at := time.Unix(1_800_000_000, 0)
	skipped, ok := n.due("a", at)
	must.True(t, ok)
	must.Zero(t, skipped)
	for range 5 {
		_, ok = n.due("a", at.Add(time.Second))
		must.False(t, ok)
	}
	_, ok = n.due("b", at.Add(time.Second))
	must.True(t, ok)
	skipped, ok = n.due("a", at.Add(noteEvery))
	must.True(t, ok)
	must.Eq(t, 5, skipped)
	for i := range 3 * maxNotes {
		n.due(fmt.Sprint(i), at)
	}
	must.LessEq(t, maxNotes, len(n.m))
}

// The terms of a request also apply to its retries.
func TestRetryKeepsTerms(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(Options{}, nil, says(wholeAnswer))
		defer b.end()
		_, err := b.ask(`{"model":"tiny","messages":[],"tools":[{"type":"function","function":{"name":"f"}}]}`)
		must.NoError(t, err)
		must.Len(t, 2, b.terms)
		must.SliceContains(t, b.terms[0].Needs, "tools")
		must.Eq(t, b.terms[0], b.terms[1])
	})
}
