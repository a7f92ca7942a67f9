package store

import (
	"context"
	"errors"
	"fmt"
	"path"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
)

// filling is one attempt to fetch the missing bytes from one source. It is used by one goroutine.
type filling struct {
	t      *transfer
	source Source // nil: only hash
	came   int64  // bytes that had arrived before it started
	active int
	ended  chan outcome
}

// outcome is the result of one Fetch.
type outcome struct {
	w   *sink
	to  int64 // requested end; -1: the file's end
	err error
}

// run starts fetches while bytes are missing, and hashes what arrives. It returns when all bytes
// have arrived and are hashed, at the first error, or, without a source, when bytes are missing. By
// then all its goroutines have ended.
func (f *filling) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	summed := make(chan error, 1)
	sums := summed
	wg.Go(func() { summed <- f.t.sums.run(ctx) })
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	began := time.Now()
	for {
		st := f.t.p.state()
		if err := f.start(ctx, &wg, st); err != nil {
			return err
		}
		if f.source == nil && !st.complete() {
			return nil
		}
		if sums == nil && f.active == 0 {
			return nil
		}
		select {
		case o := <-f.ended:
			f.active--
			if err := f.settle(o); err != nil {
				cancel()
				f.drain()
				return err
			}
			f.t.tell()
		case err := <-sums:
			if err != nil {
				cancel()
				f.drain()
				return fatalError{fmt.Errorf("read what has arrived of %s: %w", f.t.spec.Path, err)}
			}
			sums = nil // all bytes have arrived, but a running fetch may deliver more
		case <-st.news:
		case <-tick.C:
			f.t.tell()
			if st.complete() && time.Since(began) > time.Second {
				f.t.report(core.Progress{Phase: "check " + path.Base(f.t.spec.Path), Done: f.t.sums.at.Load(), Total: st.size, Unit: "bytes"})
			}
		}
	}
}

// start starts as many fetches as the source benefits from: only one until the first bytes have
// arrived, which show whether the source supports ranges.
func (f *filling) start(ctx context.Context, wg *sync.WaitGroup, st state) error {
	if f.source == nil {
		return nil
	}
	connections := max(f.source.Connections(), 1)
	missing := st.size - st.there
	most := int64(0)
	if connections > 1 && st.size > 0 && missing > parallelFrom {
		most = max(min(missing/int64(connections*4), largestPart), smallestPart)
	}
	if most == 0 || st.came == f.came {
		connections = 1
	}
	for f.active < connections {
		if st.complete() {
			return nil
		}
		w, from, to, ok := f.t.p.claim(most)
		if !ok {
			return nil
		}
		w.t, w.ctx, w.by = f.t, ctx, f.t.by
		f.active++
		wg.Go(func() {
			err := f.source.Fetch(ctx, from, to, w)
			f.ended <- outcome{w, to, err}
		})
	}
	return nil
}

// settle handles the result of a fetch. An error ends the filling.
func (f *filling) settle(o outcome) error {
	w := o.w
	defer f.release(w)
	f.noteVersion()
	switch err := w.ctx.Err(); {
	case err != nil:
		return fatalError{err}
	case errors.Is(w.err, ErrEnough):
		return nil
	case w.fatal:
		return fatalError{w.err}
	case w.err != nil:
		return w.err // the cause, however the source wrapped it
	case o.err != nil:
		return fmt.Errorf("fetch %s: %w", f.t.spec.Path, o.err)
	}
	if o.to < 0 {
		f.t.p.finish(w.pos)
		return nil
	}
	if w.pos < o.to {
		err := core.Errorf(core.Integrity, "%s has ended after %d bytes and should have %d", f.t.spec.Path, w.pos, f.t.spec.SizeBytes)
		return core.WithHint(err, "The file at its origin is shorter than announced, or was cut on the way. Try again; if it stays so, choose another version.")
	}
	return nil
}

// drain waits for the fetches that end with their context.
func (f *filling) drain() {
	for ; f.active > 0; f.active-- {
		f.release((<-f.ended).w)
	}
}

func (f *filling) release(w *sink) {
	if err := f.t.p.release(w); err != nil {
		f.t.s.log.Debug("the progress of a transfer could not be noted", "error", err)
	}
}

// noteVersion records the version that the source serves, so that a later process can ask for the
// same one.
func (f *filling) noteVersion() {
	v, ok := f.source.(Versioned)
	if !ok || v.Version() == "" || f.t.p.versionAt(v.Origin()) == v.Version() {
		return
	}
	if err := f.t.p.noteVersion(v.Origin(), v.Version()); err != nil {
		f.t.s.log.Debug("the version of a file could not be noted", "error", err)
	}
}
