package store

import (
	"context"
	"sync"

	"github.com/rbee-project/rbee/core"
)

// flights lets callers that want the same thing at the same time share one piece of work.
//
// The first caller works, with its own context and its own means; the others wait and receive its
// progress and its outcome. If the first gives up, one of the others takes over, with its own
// means: it does not fetch again what is already on disk. If the first fails, so do the others with
// its origin; those with another one try that.
type flights[T any] struct {
	mu  sync.Mutex // guards all
	all map[string]*flight[T]
}

type flight[T any] struct {
	by        string        // the origin that the first caller fetches from
	done      chan struct{} // closed at the end, after the fields below were set
	value     T
	err       error
	abandoned bool // its worker gave up: a waiting caller should try itself

	mu       sync.Mutex // guards watchers
	watchers map[*watcher]struct{}
}

// watcher holds the newest progress of each phase until its owner has read it.
type watcher struct {
	news   chan struct{} // buffered by one, never closed
	mu     sync.Mutex    // guards phases
	phases []core.Progress
}

// do runs work unless work for key is already running, and returns its outcome. A caller whose
// origin, by, is not the one that failed then runs its own work. progress is called only in the
// caller's goroutine or in work's.
func (g *flights[T]) do(ctx context.Context, key, by string, progress func(core.Progress), work func(ctx context.Context, report func(core.Progress)) (T, error)) (T, error) {
	if progress == nil {
		progress = func(core.Progress) {}
	}
	for {
		g.mu.Lock()
		f, running := g.all[key]
		if !running {
			f = &flight[T]{by: by, done: make(chan struct{}), watchers: map[*watcher]struct{}{}}
			if g.all == nil {
				g.all = map[string]*flight[T]{}
			}
			g.all[key] = f
		}
		g.mu.Unlock()
		if !running {
			return g.lead(ctx, key, f, progress, work)
		}
		again, v, err := f.wait(ctx, by, progress)
		if !again {
			return v, err
		}
	}
}

func (g *flights[T]) lead(ctx context.Context, key string, f *flight[T], progress func(core.Progress), work func(context.Context, func(core.Progress)) (T, error)) (T, error) {
	finished := false
	defer func() {
		g.mu.Lock()
		delete(g.all, key)
		g.mu.Unlock()
		// A panic of work propagates; waiting callers then try themselves instead of waiting
		// indefinitely.
		f.abandoned = !finished || f.err != nil && ctx.Err() != nil
		close(f.done)
	}()
	f.value, f.err = work(ctx, func(p core.Progress) {
		progress(p)
		f.tell(p)
	})
	finished = true
	return f.value, f.err
}

func (f *flight[T]) tell(p core.Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.watchers {
		w.add(p)
	}
}

func (f *flight[T]) wait(ctx context.Context, by string, progress func(core.Progress)) (again bool, v T, err error) {
	w := &watcher{news: make(chan struct{}, 1)}
	f.mu.Lock()
	f.watchers[w] = struct{}{}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.watchers, w)
		f.mu.Unlock()
	}()
	for {
		select {
		case <-ctx.Done():
			return false, v, ctx.Err()
		case <-w.news:
			for _, p := range w.take() {
				progress(p)
			}
		case <-f.done:
			for _, p := range w.take() {
				progress(p)
			}
			again = f.abandoned || f.err != nil && f.by != by
			return again && ctx.Err() == nil, f.value, f.err
		}
	}
}

func (w *watcher) add(p core.Progress) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.phases); n > 0 && w.phases[n-1].Phase == p.Phase {
		w.phases[n-1] = p
	} else {
		w.phases = append(w.phases, p)
	}
	select {
	case w.news <- struct{}{}:
	default:
	}
}

func (w *watcher) take() []core.Progress {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.phases
	w.phases = nil
	return out
}
