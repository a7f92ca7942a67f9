package hive

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

const (
	// loadSpacing is the least time between reports that carry only load, as a fraction (1/4) of
	// the interval that the queen asks for, within the two bounds. In a large cluster load is
	// reported less often, so that it does not swamp the queens.
	loadSpacing      = 4
	loadSpacingLeast = 250 * time.Millisecond
	loadSpacingMost  = 5 * time.Second
	// endPatience is how long the agent's shutdown waits for the queens to learn of it.
	endPatience = 500 * time.Millisecond
)

// beater keeps a line to every queen and tracks which state of the hive each has received.
type beater struct {
	// report returns the whole current state, without Seq and Ending.
	report func(ctx context.Context) *queenv1.LinkRequest
	// inventory returns what the store holds, and its change count; nil: no inventory.
	inventory func() (*queenv1.Inventory, uint64)
	// retire begins the end of a worker. Repeating it does nothing.
	retire func(worker string)
	// told handles a queen's report of its use of workers, and lost forgets that queen's reports
	// when its line breaks; nil: ignored.
	told   func(queen string, resp *queenv1.LinkResponse)
	lost   func(queen string)
	queens Queens
	log    hclog.Logger

	ready chan struct{} // closed when the first report is registered

	mu         sync.Mutex // guards below
	changed    uint64     // counts changes
	registered uint64     // change count of the newest registered report
	news       chan struct{}
	lines      map[string]*line // by queen id
	view       uint64           // index of the newest view
	isReady    bool
}

func newBeater(log hclog.Logger, queens Queens, report func(context.Context) *queenv1.LinkRequest, retire func(string)) *beater {
	return &beater{
		report: report, retire: retire, queens: queens, log: log,
		ready: make(chan struct{}), news: make(chan struct{}), lines: map[string]*line{},
		changed: 1, // so that flush before the first report waits for it
	}
}

// bump marks the state as changed. It never blocks.
func (b *beater) bump() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changed++
	for _, l := range b.lines {
		wake(l.changed)
	}
}

// bumpLoad marks the load as changed, which may be reported a little later. It never blocks.
func (b *beater) bumpLoad() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changed++
	for _, l := range b.lines {
		wake(l.loaded)
	}
}

// wake fills a channel of capacity one.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// flush waits until the leader has registered the current state. The error is ctx's.
func (b *beater) flush(ctx context.Context) error {
	b.mu.Lock()
	want := b.changed
	for b.registered < want {
		news := b.news
		for _, l := range b.lines {
			if l.told < want {
				wake(l.changed) // a load change may be pending
			}
		}
		b.mu.Unlock()
		select {
		case <-news:
		case <-ctx.Done():
			return fmt.Errorf("tell the queens: %w", core.FromContext(ctx))
		}
		b.mu.Lock()
	}
	b.mu.Unlock()
	return nil
}

// spread waits until every connected queen has received the current state. The error is ctx's.
func (b *beater) spread(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for want := b.changed; ; {
		behind := false
		for _, l := range b.lines {
			behind = behind || l.stands && l.took < want
		}
		if !behind {
			return nil
		}
		news := b.news
		b.mu.Unlock()
		select {
		case <-news:
			b.mu.Lock()
		case <-ctx.Done():
			b.mu.Lock()
			return core.FromContext(ctx)
		}
	}
}

// took notes that the queen at the end of a line has taken in a report with this change count.
func (b *beater) took(l *line, count uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l.stands, l.took = true, max(l.took, count)
	b.newsLocked()
}

// broke notes that a line is no longer connected.
func (b *beater) broke(l *line) {
	if b.lost != nil {
		b.lost(l.queen.ID)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l.stands = false
	b.newsLocked()
}

func (b *beater) newsLocked() {
	close(b.news)
	b.news = make(chan struct{})
}

// telling notes that a line is about to report the current state, and returns its change count.
func (b *beater) telling(l *line) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	l.told = b.changed
	return b.changed
}

// accepted notes that the leader has registered a report with this change count.
func (b *beater) accepted(count uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.registered = max(b.registered, count)
	b.newsLocked()
	if !b.isReady {
		b.isReady = true
		close(b.ready)
	}
}

// viewed passes on a queen's view of the cluster, unless a newer one has arrived from another
// queen.
func (b *beater) viewed(v *queenv1.ClusterView) {
	b.mu.Lock()
	newer := v.GetIndex() >= b.view
	if newer {
		b.view = v.GetIndex()
	}
	b.mu.Unlock()
	if newer {
		b.queens.SetView(v)
	}
}

// run keeps a line to every queen until ctx ends, then reports to them that the hive ends, and
// returns when all lines have ended.
func (b *beater) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	for {
		changed := b.queens.Changed()
		b.keep(life, &wg, b.queens.List())
		select {
		case <-changed:
			continue
		case <-ctx.Done():
		}
		break
	}
	b.end(life)
}

// keep starts lines to new queens and ends those to queens that were removed or have moved.
func (b *beater) keep(ctx context.Context, wg *sync.WaitGroup, queens []QueenAddress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	there := map[string]bool{}
	for _, q := range queens {
		there[q.ID] = true
		old, ok := b.lines[q.ID]
		if ok && old.queen == q {
			continue
		}
		if ok {
			old.cancel()
		}
		life, cancel := context.WithCancel(ctx)
		l := newLine(b, q, cancel)
		b.lines[q.ID] = l
		wg.Go(func() {
			defer cancel()
			l.run(life)
		})
	}
	for id, l := range b.lines {
		if !there[id] {
			l.cancel()
			delete(b.lines, id)
		}
	}
}

// end reports to every queen that the hive ends, and waits briefly for the connected lines.
func (b *beater) end(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	b.mu.Lock()
	lines := make([]*line, 0, len(b.lines))
	for _, l := range b.lines {
		lines = append(lines, l)
	}
	b.mu.Unlock()
	for _, l := range lines {
		close(l.ending)
	}
	for _, l := range lines {
		select {
		case <-l.ended:
		case <-ctx.Done():
			return
		}
	}
}
