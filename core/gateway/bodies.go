package gateway

import (
	"context"
	"crypto/sha256"
	"net/http"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
)

// codeOverloaded is the error code for a request that does not currently fit.
const codeOverloaded = "overloaded"

// bodies tracks the memory for the bodies of all running requests. It is safe for concurrent use.
type bodies struct {
	total, perKey int64
	wait          time.Duration // how long a body waits for room
	// spare frees dispensable memory and reports whether it freed any; nil: there is none. It is
	// set before use.
	spare func(bytes int64) bool

	mu    sync.Mutex // guards below
	used  int64
	keys  map[tokenDigest]int64
	freed chan struct{} // closed and replaced whenever room is freed
}

func newBodies(total, perKey int64, wait time.Duration) *bodies {
	return &bodies{total: total, perKey: perKey, wait: wait, keys: map[tokenDigest]int64{}, freed: make(chan struct{})}
}

// tokenDigest is the SHA-256 of a token.
type tokenDigest [sha256.Size]byte

// heldBody is one request's share of bodies. The zero value holds nothing.
type heldBody struct {
	of    *bodies
	key   tokenDigest // zero: the client has no token and no share of its own
	held  int64
	until time.Time // deadline of all its waiting; zero: it has not waited
}

// grow reserves n more bytes and waits for room, for a bounded time. Errors: Overloaded, Cancelled.
func (h *heldBody) grow(ctx context.Context, n int64) error {
	for {
		freed, missing, err := h.try(n)
		if err == nil {
			return nil
		}
		if missing > 0 && h.of.spare != nil && h.of.spare(missing) {
			continue
		}
		if h.until.IsZero() {
			h.until = time.Now().Add(h.of.wait)
		}
		timer := time.NewTimer(time.Until(h.until))
		select {
		case <-freed:
			timer.Stop()
		case <-timer.C:
			return err
		case <-ctx.Done():
			timer.Stop()
			return core.Errorf(core.Cancelled, "the client is gone")
		}
	}
}

// try reserves n bytes if they fit; otherwise freed is closed when room is freed. missing is the
// shortfall of the total; 0: only this client is over its share.
func (h *heldBody) try(n int64) (freed <-chan struct{}, missing int64, err error) {
	b := h.of
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case h.key != (tokenDigest{}) && b.keys[h.key]+n > b.perKey:
		return b.freed, 0, &apiError{code: codeOverloaded, err: core.Errorf(core.Overloaded, "the running requests of this token use too much memory").Hint("Ask again when some have ended, or send less at once.")}
	case b.used+n > b.total:
		return b.freed, b.used + n - b.total, &apiError{status: http.StatusServiceUnavailable, code: codeOverloaded, err: core.Errorf(core.Overloaded, "the running requests use too much memory").Hint("Ask again in a moment, or ask another queen.")}
	}
	b.used += n
	if h.key != (tokenDigest{}) {
		b.keys[h.key] += n
	}
	h.held += n
	return nil, 0, nil
}

// shrink returns n bytes.
func (h *heldBody) shrink(n int64) {
	if n == 0 || h.of == nil {
		return
	}
	b := h.of
	b.mu.Lock()
	defer b.mu.Unlock()
	h.held -= n
	b.used -= n
	if h.key != (tokenDigest{}) {
		if b.keys[h.key] -= n; b.keys[h.key] == 0 {
			delete(b.keys, h.key)
		}
	}
	close(b.freed)
	b.freed = make(chan struct{})
}

// release returns all bytes.
func (h *heldBody) release() { h.shrink(h.held) }

// room is the share of bodies that kept conversations use: it yields to requests.
type room struct{ held heldBody }

// Take implements responses.Room.
func (r *room) Take(bytes int64) bool {
	_, _, err := r.held.try(bytes)
	return err == nil
}

// Give implements responses.Room.
func (r *room) Give(bytes int64) { r.held.shrink(bytes) }

// expireEvery is the interval at which expired conversations are dropped.
const expireEvery = time.Minute

func (g *kept) expireAnswers(ctx context.Context) {
	t := time.NewTicker(expireEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			g.answers.Expire(now)
		}
	}
}
