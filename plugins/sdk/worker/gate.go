package worker

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Gate admits a worker's requests to its slots, counts them, and drains or cuts them: the common
// part of a Backend's Status, Drain and Stop, for backends without their own queue. Create it with
// NewGate once Start knows the number of slots. It is safe for concurrent use.
type Gate struct {
	slots chan struct{}
	open  context.Context // ends with Stop
	close context.CancelFunc

	mu       sync.Mutex // guards below
	draining bool
	active   int
	queued   int
	tokens   int64
	quiet    chan struct{} // closed when nothing is active or queued; nil if nothing waits for that
}

// NewGate returns a Gate that admits the given number of concurrent requests, 1 or more.
func NewGate(slots int) *Gate {
	// the lifetime of the worker, not of a call
	open, closeGate := context.WithCancel(context.Background())
	return &Gate{slots: make(chan struct{}, max(slots, 1)), open: open, close: closeGate}
}

// Handler passes POST requests to next as slots become free, first come, first served. It refuses
// them with 429 while MaxQueued are waiting, and with 503 while it drains. Other methods pass at
// once. The context of an admitted request ends when its client disconnects or the Gate is stopped.
// It first reads up to MaxQueuedBody of the body of a request that must wait, because net/http
// notices a disconnected client only after the body.
func (g *Gate) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			next.ServeHTTP(w, r)
			return
		}
		switch g.enter(r) {
		case admitted:
		case full:
			refuse(w, http.StatusTooManyRequests, "rate_limit_error", "the worker's queue is full; send the request again", "overloaded")
			return
		case closed:
			refuseUnavailable(w, "this worker takes no new requests; send it again", "draining")
			return
		}
		defer g.leave()
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(g.open, func() {
			cancel()
			// A write to a client that does not read would block the request, and with it Stop.
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(flushTime))
		})()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// MaxQueuedBody bounds, in bytes, how much of a body is read while the request waits for a slot. If
// the body is longer, a disconnected client is noticed only once the request has a slot.
const MaxQueuedBody = 16 << 20

// MaxQueued is the most requests that wait for a slot. A host sends a worker only a few more than
// it has slots for, and queues the others itself.
const MaxQueued = 256

// admission is the outcome of a request at the Gate.
type admission int

const (
	closed   admission = iota // the Gate drains, or the client has disconnected
	full                      // too many requests are queued
	admitted                  // the request has a slot
)

func (g *Gate) enter(r *http.Request) admission {
	g.mu.Lock()
	if g.draining {
		g.mu.Unlock()
		return closed
	}
	select {
	case g.slots <- struct{}{}:
		g.active++
		g.mu.Unlock()
		return admitted
	default:
	}
	if g.queued >= MaxQueued {
		g.mu.Unlock()
		return full
	}
	g.queued++
	g.mu.Unlock()
	got := g.wait(r)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.queued--
	if got {
		g.active++
		return admitted
	}
	g.quietLocked()
	return closed
}

// wait waits for a slot.
func (g *Gate) wait(r *http.Request) bool {
	body, err := io.ReadAll(io.LimitReader(r.Body, MaxQueuedBody))
	if err != nil {
		return false // the client has disconnected, or sends too slowly
	}
	rest := r.Body
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(body), rest), rest}
	select {
	case g.slots <- struct{}{}:
		return true
	case <-g.open.Done():
	case <-r.Context().Done():
	}
	return false
}

func (g *Gate) leave() {
	<-g.slots
	g.mu.Lock()
	defer g.mu.Unlock()
	g.active--
	g.quietLocked()
}

func (g *Gate) quietLocked() {
	if g.active+g.queued == 0 && g.quiet != nil {
		close(g.quiet) // happens once: a draining Gate admits nothing
	}
}

// AddTokens counts generated tokens.
func (g *Gate) AddTokens(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tokens += int64(n)
}

// Fill sets what the Gate knows in st: slots, active, queued, tokens, and the state while draining.
// A nil Gate, as before Start, sets nothing.
func (g *Gate) Fill(st *Status) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	st.Slots, st.Active, st.Queued, st.TokensTotal = cap(g.slots), g.active, g.queued, g.tokens
	if g.draining {
		st.State = StateDraining
	}
}

// Drain refuses new requests and returns when the last admitted or queued one has finished, or when
// ctx ends. A nil Gate is already drained.
func (g *Gate) Drain(ctx context.Context) error {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	g.draining = true
	if g.active+g.queued == 0 {
		g.mu.Unlock()
		return nil
	}
	if g.quiet == nil {
		g.quiet = make(chan struct{})
	}
	quiet := g.quiet
	g.mu.Unlock()
	select {
	case <-quiet:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stop drains for the grace, then cancels the contexts and soon afterwards the writes of the
// remaining requests, and waits for them as long as ctx allows. It is idempotent.
func (g *Gate) Stop(ctx context.Context, grace time.Duration) error {
	if g == nil {
		return nil
	}
	graceful, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	err := g.Drain(graceful)
	g.close()
	if err != nil {
		return g.Drain(ctx)
	}
	return nil
}

// refuseUnavailable responds with 503 in OpenAI's envelope.
func refuseUnavailable(w http.ResponseWriter, message, code string) {
	refuse(w, http.StatusServiceUnavailable, "unavailable_error", message, code)
}

// refuse responds in OpenAI's envelope that the request may be retried in a moment.
func refuse(w http.ResponseWriter, status int, typ, message, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Retry-After", "1")
	w.WriteHeader(status)
	// an error means that the client disconnected
	_, _ = w.Write([]byte(`{"error":{"message":` + strconv.Quote(message) + `,"type":` + strconv.Quote(typ) + `,"param":null,"code":` + strconv.Quote(code) + "}}\n"))
}
