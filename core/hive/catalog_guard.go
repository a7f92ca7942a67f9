package hive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// A catalog plugin is foreign code: it may hang, exit, or flood its caller. It is ended when it
// stops answering pings, restarted after a growing backoff, and its output is bounded.
const (
	pingEvery   = 3 * time.Second // while the plugin is in use
	pingTimeout = 6 * time.Second
	// resolveTimeout bounds the resolution of one reference. The origin may be slow, and the plugin
	// retries.
	resolveTimeout = 2 * time.Minute
	// fetchStall is how long a plugin may deliver no byte of a file.
	fetchStall = 2 * time.Minute

	firstRest, longestRest = time.Second, time.Minute

	maxItems     = 1000 // of one search
	maxFiles     = 2000 // of one manifest
	maxNotes     = 20
	maxTextBytes = 4 << 10 // of a name, a path or an address
)

// errEnough ends a search that yields too many items.
var errEnough = errors.New("enough")

// rest returns the backoff for a plugin that exited by itself so many times in a row. It is 0 the
// first time.
func rest(failures int) time.Duration {
	if failures < 2 {
		return 0
	}
	return min(firstRest<<min(failures-2, 10), longestRest)
}

// watched calls f, and ends the plugin when it stops answering pings meanwhile.
func (c *catalogs) watched(ctx context.Context, s *source, p catalogProcess, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var hung error // written before the watching goroutine ends
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(pingEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-p.Done():
				return
			case <-tick.C:
			}
			bounded, stop := context.WithTimeout(ctx, pingTimeout)
			err := p.Ping(bounded)
			late := bounded.Err() != nil && ctx.Err() == nil
			stop()
			if err == nil || !late {
				continue
			}
			c.log.Warn("a catalog plugin does not answer and is ended", "plugin", s.spec.Name)
			hung = core.Errorf(core.Unavailable, "%s: its plugin does not answer, and was ended", "use catalog source "+s.spec.Name).Hint("Try again: it is started anew. If it happens again, report it to the author of the plugin.")
			if err := p.Kill(); err != nil {
				c.log.Warn("end a catalog plugin", "plugin", s.spec.Name, "error", err)
			}
			cancel(hung)
			return
		}
	})
	err := f(ctx)
	cancel(nil)
	watch.Wait()
	if hung != nil {
		return hung
	}
	return err
}

// resting returns an error while a plugin that exited by itself too often is backing off. The
// caller holds the gate.
func (s *source) resting(now time.Time) error {
	wait := s.notBefore.Sub(now)
	if wait <= 0 {
		return nil
	}
	return core.Errorf(core.Unavailable, "%s: its plugin ended by itself %d times in a row", "use catalog source "+s.spec.Name, s.failures).Hint(
		"It can be used again in %s. See the agent's log for what it said.", max(wait.Round(time.Second), time.Second))
}

// checkManifest refuses what no honest source returns.
func checkManifest(m catalog.Manifest) error {
	if len(m.Files) == 0 {
		return errors.New("it names no file")
	}
	if len(m.Files) > maxFiles || len(m.Notes) > maxNotes {
		return fmt.Errorf("it has %d files and %d notes", len(m.Files), len(m.Notes))
	}
	texts := append([]string{m.Ref, m.Name, m.Version, m.License, string(m.Kind)}, m.Notes...)
	for _, f := range m.Files {
		if f.SizeBytes < 0 {
			return fmt.Errorf("a file has the size %d", f.SizeBytes)
		}
		if len(f.Header) > maxNotes {
			return fmt.Errorf("a file has %d headers", len(f.Header))
		}
		texts = append(texts, f.Ref, f.Path, f.Digest, f.Locator, f.URL)
		for name, value := range f.Header {
			texts = append(texts, name, value)
		}
	}
	for _, t := range texts {
		if len(t) > maxTextBytes {
			return fmt.Errorf("a text in it has %d bytes", len(t))
		}
	}
	return nil
}

// fitting reports whether a search item is within the bounds.
func fitting(i catalog.Item) bool {
	return max(len(i.Ref), len(i.Name), len(i.Summary), len(i.License), len(i.Kind)) <= maxTextBytes
}

// moving is the writer of a transfer that is aborted when no bytes arrive for too long. The time
// that the underlying writer takes does not count.
type moving struct {
	w     io.Writer
	timer *time.Timer
}

// copying calls f with a writer to w and with a context that ends when f writes nothing for too
// long.
func copying(ctx context.Context, w io.Writer, f func(context.Context, io.Writer) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := core.Errorf(core.Unavailable, "the catalog source has brought nothing for %s", fetchStall)
	m := &moving{w: w, timer: time.AfterFunc(fetchStall, func() { cancel(stalled) })}
	defer m.timer.Stop()
	err := f(ctx, m)
	if err != nil && errors.Is(context.Cause(ctx), stalled) {
		return stalled
	}
	return err
}

func (m *moving) Write(b []byte) (int, error) {
	m.timer.Stop()
	defer m.timer.Reset(fetchStall)
	return m.w.Write(b)
}
