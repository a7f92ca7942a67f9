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
	// loadSpacing is the least time between reports that only tell of load, as a part of the
	// interval that the queen asks for, within the two bounds: what is worth telling of a large
	// cluster's load is told less often, or its queens would do nothing else.
	loadSpacing      = 4
	loadSpacingLeast = 250 * time.Millisecond
	loadSpacingMost  = 5 * time.Second
	// endPatience is how long the end of the agent waits for the queens to know of it.
	endPatience = 500 * time.Millisecond
)

// beater keeps a line to every queen and knows which state of the hive they have been told.
type beater struct {
	// report is the whole state as it is now, without Seq and Ending.
	report func(ctx context.Context) *queenv1.LinkRequest
	// inventory returns what the store has, and the count of its changes; nil: there is none.
	inventory func() (*queenv1.Inventory, uint64)
	// retire begins the end of a worker. Repeating it does nothing.
	retire func(worker string)
	// told takes in what a queen says of its use of workers, lost that it can say no more; nil: it
	// is nobody's business.
	told   func(queen string, resp *queenv1.LinkResponse)
	lost   func(queen string)
	queens Queens
	log    hclog.Logger

	ready chan struct{} // closed with the first report that is registered

	mu         sync.Mutex // guards below
	changed    uint64     // counts changes
	registered uint64     // the count that the newest registered report told
	news       chan struct{}
	lines      map[string]*line // by id of the queen
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

// bump says that the state has changed. It never blocks.
func (b *beater) bump() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changed++
	for _, l := range b.lines {
		wake(l.changed)
	}
}

// bumpLoad says that the load has changed, which can wait a little. It never blocks.
func (b *beater) bumpLoad() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changed++
	for _, l := range b.lines {
		wake(l.loaded)
	}
}

// wake fills a channel that holds one.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// flush waits until the leader has said that the state as it is now is registered. The error is
// ctx's.
func (b *beater) flush(ctx context.Context) error {
	b.mu.Lock()
	want := b.changed
	for b.registered < want {
		news := b.news
		for _, l := range b.lines {
			if l.told < want {
				wake(l.changed) // a change of load may have waited
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

// spread waits until the queens that a line stands to have been told the state as it is now. The
// error is ctx's.
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

// took notes that the queen at the end of a line has taken in a report that told the state with
// this count.
func (b *beater) took(l *line, count uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l.stands, l.took = true, max(l.took, count)
	b.newsLocked()
}

// broke notes that a line stands no longer.
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

// telling notes that a line is about to tell the state as it is now, and gives the count of it.
func (b *beater) telling(l *line) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	l.told = b.changed
	return b.changed
}

// accepted notes that the leader has registered a report that told the state with this count.
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

// viewed passes on what a queen says of the cluster, unless another one has said something newer.
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

// run keeps a line to every queen until ctx ends, tells them then that the hive ends, and returns
// when all lines have.
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

// keep starts lines to queens that are new and ends those to queens that are no longer there, or
// elsewhere.
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

// end tells every queen that the hive ends, and waits for the lines that stand, not long.
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
