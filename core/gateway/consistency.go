package gateway

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/rbee-project/rbee/core"
)

const (
	readPatience   = 5 * time.Second // for a read to become as fresh as required
	statusPatience = time.Second     // shorter: the status is requested when something is wrong, and must arrive
)

// handler answers one route.
type handler func(*Gateway, *response, *http.Request) error

// fresh wraps a registry read: it first makes the replica as fresh as ?consistency= requires.
func fresh(handle handler) handler {
	return func(g *Gateway, w *response, r *http.Request) error {
		c, err := consistencyOf(r)
		if err != nil {
			return err
		}
		if _, err := g.sync(r.Context(), w, c, readPatience); err != nil {
			return err
		}
		return handle(g, w, r)
	}
}

// local wraps a read that never waits for another queen. Its answer is marked as stale if no leader
// is known.
func local(handle handler) handler {
	return func(g *Gateway, w *response, r *http.Request) error {
		if g.o.Reader != nil {
			// A stale read asks no other queen.
			if info, err := g.o.Reader.Sync(r.Context(), core.ConsistencyStale); err == nil && info.Leader == "" {
				w.Header().Set("X-Rbee-Stale", "true")
			}
		}
		return handle(g, w, r)
	}
}

// consistencyOf returns the consistency that the client asks for, by default ConsistencyDefault.
func consistencyOf(r *http.Request) (core.Consistency, error) {
	if r.URL.RawQuery == "" {
		return core.ConsistencyDefault, nil
	}
	values := r.URL.Query()["consistency"]
	if len(values) == 0 {
		return core.ConsistencyDefault, nil
	}
	if c := core.Consistency(values[0]); len(values) == 1 && (c == core.ConsistencyDefault || c == core.ConsistencyStale || c == core.ConsistencyLinearizable) {
		return c, nil
	}
	return "", &apiError{param: "consistency", err: core.Errorf(core.Invalid, "unknown consistency %q", clip(values[0], 40)).Hint(
		"There are default, stale and linearizable.")}
}

// sync makes the replica as fresh as c requires and reports its freshness to the client.
func (g *Gateway) sync(ctx context.Context, w *response, c core.Consistency, patience time.Duration) (core.ReadInfo, error) {
	if g.o.Reader == nil {
		return core.ReadInfo{}, nil
	}
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	info, err := g.o.Reader.Sync(bounded, c)
	if err != nil {
		if ctx.Err() == nil && (bounded.Err() != nil || core.KindOf(err) == core.DeadlineExceeded) {
			err = core.Errorf(core.Unavailable, "no leader confirmed within %s how fresh the registry is", patience)
		}
		if core.KindOf(err) == core.Unavailable {
			err = core.WithHint(err, "Ask again in a moment, or for what this queen knows: ?consistency=stale.")
		}
		return info, err
	}
	h := w.Header()
	h.Set("X-Rbee-Index", strconv.FormatUint(info.Index, 10))
	h.Set("X-Rbee-Leader", info.Leader)
	h.Set("X-Rbee-Last-Contact", strconv.FormatInt(time.Duration(info.LastContact).Milliseconds(), 10))
	h.Set("X-Rbee-Stale", strconv.FormatBool(info.Stale))
	return info, nil
}

// status is a registry read that always succeeds: without a leader it is stale, and marked as such.
func (g *Gateway) status(w *response, r *http.Request) error {
	c, err := consistencyOf(r)
	if err != nil {
		return err
	}
	patience := readPatience
	if c == core.ConsistencyDefault {
		patience = statusPatience
	}
	info, err := g.sync(r.Context(), w, c, patience)
	if c == core.ConsistencyDefault && core.KindOf(err) == core.Unavailable {
		info, err = g.sync(r.Context(), w, core.ConsistencyStale, readPatience)
	}
	if err != nil {
		return err
	}
	v, err := g.o.Cluster.Status(r.Context())
	if err == nil && g.o.Reader != nil {
		v.Read = info
	}
	return answerOne(w, v, err)
}
