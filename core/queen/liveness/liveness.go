// Package liveness keeps what one queen hears of hives: their links and reports, and what follows
// from silence. A queen that leads also writes it to the registry.
package liveness

import (
	"container/heap"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// The timing of reports and of what follows from silence, for queens and hives on one local
// network. A hive reports early when something changes.
//
// Each queen by itself avoids the workers of a hive whose link broke, that is shutting down, or
// that is silent for its interval and SuspectGrace. Only its memory holds that, and the next report
// undoes it. The leader then asks the hive for a sign of life by another way (Options.Pinger). It
// writes that the hive is down, which removes its workers from the registry, after DownAfter with
// neither a report nor a sign, or after SilentAlive without a report in spite of signs. Busy is not
// dead: a report, however late, undoes that as well.
//
// The monotonic clock measures all of it: the wall clock may jump.
const (
	ReportInterval      = time.Second             // between reports, as long as MaxReportsPerSecond allows
	MaxReportsPerSecond = 50                      // to one queen, of all hives together; above it the interval grows with the number of hives
	SuspectGrace        = 300 * time.Millisecond  // beyond the announced interval
	DownAfter           = 2800 * time.Millisecond // since the last report, and what the interval exceeds ReportInterval by; or since the last sign of life
	SilentAlive         = 30 * time.Second        // for a hive that gives signs of life but does not report: TCP alone may hold reports back for that long
	DownAlone           = 10 * time.Second        // since the last report, without a Pinger; or twice the interval and 5 s, if that is longer
	LinkGrace           = 10 * time.Second        // for hives without a link, from the moment a queen leads; for routing, from its start
	ForgetAfter         = 24 * time.Hour          // a hive that is down is removed from the registry
	SilentWorker        = 3 * time.Second         // since a worker last told its state: it gets no request
	PingInterval        = 50 * time.Millisecond   // between two pings to one suspect hive
)

const (
	pingTimeout   = 500 * time.Millisecond
	maxPings      = 1024 // that wait for an answer at once
	leastPings    = 8    // that must have failed in a row before silence counts
	retryExpiry   = 200 * time.Millisecond
	maxExpiryWait = 365 * 24 * time.Hour // where nothing can expire
)

// Registry is the replicated registry, as far as a Monitor needs it.
type Registry interface {
	// View returns the registry as this queen has it now.
	View() *state.Snapshot
	// Apply commits a command and returns once this queen has applied it. Only the leader can.
	Apply(ctx context.Context, requestID string, c *raftv1.Command) (fsm.Result, error)
	// Replaced returns a channel that is closed when a snapshot replaces the registry.
	Replaced() <-chan struct{}
}

// Pinger is another way to a hive than its link, such as gossip. It may be called concurrently.
type Pinger interface {
	// Ping returns nil as soon as the hive has answered, and an error if it has not when ctx ends,
	// or earlier.
	Ping(ctx context.Context, hive string) error
}

// Options say what a Monitor works with. Registry is required.
type Options struct {
	Registry Registry
	ID       string // of the queen, for messages
	Logger   hclog.Logger
	// MinFSM returns the lowest state machine version among the queens that answer; 0 or nil: none
	// does.
	MinFSM func() uint32
	// Pinger asks silent hives for a sign of life; nil: only the link leads to a hive, which is
	// then given more time.
	Pinger Pinger
	// Suspected is told of a hive whose workers are avoided from now on. It must not block, nor
	// call the Monitor. nil: nobody.
	Suspected func(hive string)
	// TermChanged drops what was learned while another queen led. It is called before this queen
	// takes over, also with a registry that a snapshot replaced, and after it has stepped down.
	TermChanged func()
	Now         func() time.Time // stamps reports; nil: time.Now
}

// Monitor keeps the links and reports of all hives at one queen. It is safe for concurrent use.
// What it knows of one hive is a View, which readers get without its lock.
type Monitor struct {
	opts    Options
	log     hclog.Logger
	unheard *View         // of hives that nothing is known of
	views   sync.Map      // hive id → *View; written under mu, read without
	alarm   chan struct{} // an earlier alarm is due; as the next two it holds one
	wake    chan struct{} // there is something to write
	doubt   chan struct{} // there is a silent hive
	ended   chan struct{} // closed by Close
	readers sync.WaitGroup

	mu       sync.Mutex // guards below, the peers and their links
	leading  bool
	peers    map[string]*peer // by hive id
	alarms   alarms
	links    int                  // that stand
	stocked  int                  // bytes of all inventories
	dirty    []*peer              // to be written; only while leading, as the next two
	gone     []*peer              // to be written as down, or removed
	silent   map[string]*peer     // to be asked for a sign of life
	told     *queenv1.ClusterView // what hives are to know; nil: nothing
	suspects map[instance]string  // why workers are avoided
	changed  chan struct{}        // closed and replaced when workers may have become usable, or no longer are
}

// instance tells one start of a worker from all others. The nonce alone would not: a hive can
// report that of another's worker.
type instance struct{ hive, nonce string }

// New returns a monitor that has heard of no hive.
func New(o Options) *Monitor {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MinFSM == nil {
		o.MinFSM = func() uint32 { return 0 }
	}
	if o.TermChanged == nil {
		o.TermChanged = func() {}
	}
	return &Monitor{
		opts:     o,
		log:      o.Logger,
		unheard:  &View{since: time.Now()},
		alarm:    make(chan struct{}, 1),
		wake:     make(chan struct{}, 1),
		doubt:    make(chan struct{}, 1),
		ended:    make(chan struct{}),
		peers:    map[string]*peer{},
		silent:   map[string]*peer{},
		suspects: map[instance]string{},
		changed:  make(chan struct{}),
	}
}

// Run acts on silence until ctx ends.
func (m *Monitor) Run(ctx context.Context) { m.watchAlarms(ctx) }

// Close ends all links and returns once nothing reads from them.
func (m *Monitor) Close() {
	m.mu.Lock()
	close(m.ended)
	m.mu.Unlock()
	m.readers.Wait()
}

// Changed returns a channel that is closed when workers may have become usable, or may no longer
// be, for a reason that the registry does not tell. Take it before reading a View.
func (m *Monitor) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

func (m *Monitor) changedLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// peer is what this queen knows of a hive beyond the registry. Monitor.mu guards its fields. Zero
// times do not come.
type peer struct {
	id     string
	link   *Link   // nil: none
	report *Report // the last one; nil: none yet
	// inventory is what it last said of its store; nil: nothing, or more than is kept.
	inventory *Inventory
	heard     time.Time
	next      time.Duration // when it was told to report next
	// suspect is why the hive's workers are avoided; empty: they are not.
	suspect      string
	suspectSince time.Time
	suspectAt    time.Time
	forgetAt     time.Time

	// Only while leading.
	downAt     time.Time
	graceUntil time.Time // not down before
	answered   time.Time // the last ping
	unanswered int       // pings since
	dirty      bool      // its report waits for being written
	writing    bool      // something of it is being written
	gone       bool      // it waits for being written as down or, with forget, removed
	forget     bool

	wakeAt time.Time // when the heap has it looked at; not after due
	place  int       // in the heap; -1: not in it
}

// due returns the earliest time at which something happens to the hive; zero: never.
func (p *peer) due() time.Time {
	var next time.Time
	for _, at := range []time.Time{p.suspectAt, p.downAt, p.forgetAt} {
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}

// alarms is a heap of peers by wakeAt. A due time that moves away leaves the heap as it is: the
// pulse is looked at in vain once, and put back.
type alarms []*peer

func (a alarms) Len() int           { return len(a) }
func (a alarms) Less(i, j int) bool { return a[i].wakeAt.Before(a[j].wakeAt) }
func (a alarms) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].place, a[j].place = i, j
}

func (a *alarms) Push(x any) {
	p, _ := x.(*peer)
	p.place = len(*a)
	*a = append(*a, p)
}

func (a *alarms) Pop() any {
	last := len(*a) - 1
	p := (*a)[last]
	(*a)[last] = nil
	*a = (*a)[:last]
	p.place = -1
	return p
}

// peerLocked returns what is known of a hive, and adds it where nothing is.
func (m *Monitor) peerLocked(id string) *peer {
	p, ok := m.peers[id]
	if !ok {
		p = &peer{id: id, place: -1}
		m.peers[id] = p
	}
	return p
}

// dropLocked forgets a hive that has no link.
func (m *Monitor) dropLocked(p *peer) {
	if p.place >= 0 {
		heap.Remove(&m.alarms, p.place)
	}
	if p.inventory != nil {
		m.stocked -= p.inventory.bytes
	}
	delete(m.peers, p.id)
	delete(m.silent, p.id)
	m.confirmLocked(p.id, nil, true)
	m.publishLocked(p.id)
}

// scheduleLocked sets the alarm of a hive to when it is due.
func (m *Monitor) scheduleLocked(p *peer) {
	due := p.due()
	switch {
	case due.IsZero():
		return
	case p.place < 0:
		p.wakeAt = due
		heap.Push(&m.alarms, p)
	case due.Before(p.wakeAt):
		p.wakeAt = due
		heap.Fix(&m.alarms, p.place)
	default:
		return
	}
	if p.place == 0 {
		wake(m.alarm)
	}
}

// wake fills a channel that holds one.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// watchAlarms acts on due peers until ctx ends.
func (m *Monitor) watchAlarms(ctx context.Context) {
	timer := time.NewTimer(maxExpiryWait)
	defer timer.Stop()
	for {
		timer.Reset(m.expire())
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-m.alarm:
		}
	}
}

// expire acts on every hive that is due and returns how long until the next is.
func (m *Monitor) expire() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for len(m.alarms) > 0 {
		p := m.alarms[0]
		if p.wakeAt.After(now) {
			return p.wakeAt.Sub(now)
		}
		m.expireLocked(p, now)
		if p.place < 0 {
			continue // dropped
		}
		if due := p.due(); due.IsZero() {
			heap.Remove(&m.alarms, p.place)
		} else {
			p.wakeAt = due
			heap.Fix(&m.alarms, p.place)
		}
	}
	return maxExpiryWait
}

func (m *Monitor) expireLocked(p *peer, now time.Time) {
	if passed(p.suspectAt, now) {
		p.suspectAt = time.Time{}
		m.suspectLocked(p, "its hive is silent")
	}
	if passed(p.downAt, now) {
		p.downAt = m.downAtLocked(p)
		switch {
		case !passed(p.downAt, now):
		case m.opts.Pinger != nil && p.graceUntil.IsZero() && p.answered.IsZero() && p.unanswered < leastPings:
			p.downAt = now.Add(retryExpiry) // many are silent at once, and it has not been asked often enough
		default:
			p.downAt = time.Time{}
			m.goneLocked(p, false)
		}
	}
	if passed(p.forgetAt, now) {
		p.forgetAt = time.Time{}
		if m.leading {
			m.goneLocked(p, true)
		} else if p.link == nil {
			m.dropLocked(p)
		}
	}
}

func passed(deadline, now time.Time) bool { return !deadline.IsZero() && !deadline.After(now) }

// suspectLocked avoids the workers of a hive from now on.
func (m *Monitor) suspectLocked(p *peer, why string) {
	if p.suspect != "" {
		return
	}
	p.suspect, p.suspectSince = why, time.Now()
	m.log.Warn("hive does not report: its workers are avoided", "hive", m.label(p.id), "reason", why)
	m.publishLocked(p.id)
	m.changedLocked()
	if m.opts.Suspected != nil {
		m.opts.Suspected(p.id)
	}
	if m.leading {
		m.doubtLocked(p)
	}
}

// label returns the name of a hive for the log, or its id where the registry does not know it.
func (m *Monitor) label(id string) string {
	if h := m.opts.Registry.View().PeekHive(nil, id); h != nil && h.Name != "" {
		return h.Name
	}
	return id
}

// doubtLocked has the leader find out whether a suspect hive is down.
func (m *Monitor) doubtLocked(p *peer) {
	p.answered, p.unanswered = time.Time{}, 0
	p.downAt = m.downAtLocked(p)
	if m.opts.Pinger != nil && p.graceUntil.IsZero() {
		m.silent[p.id] = p
		wake(m.doubt)
	}
	m.scheduleLocked(p)
}

// trustLocked undoes suspectLocked and reports whether there was something to undo. The caller
// publishes.
func (m *Monitor) trustLocked(p *peer) bool {
	delete(m.silent, p.id)
	if p.suspect == "" {
		return false
	}
	m.log.Info("hive reports again", "hive", m.label(p.id), "after", time.Since(p.suspectSince).Round(time.Millisecond), "reason", p.suspect)
	p.suspect, p.suspectSince = "", time.Time{}
	return true
}

// confirmLocked no longer avoids workers of a hive that failed requests and are in its report, and
// reports whether there were any. With all it also forgets those that are not in the report: the
// registry does not know them either. The caller publishes.
func (m *Monitor) confirmLocked(hive string, r *Report, all bool) bool {
	found := false
	for at := range m.suspects {
		if at.hive == hive && (all || slices.ContainsFunc(r.Workers, func(w core.Worker) bool { return w.Nonce == at.nonce })) {
			delete(m.suspects, at)
			found = true
		}
	}
	return found
}

// downAtLocked returns when a hive is down if nothing more is heard of it.
func (m *Monitor) downAtLocked(p *peer) time.Time {
	var at time.Time
	switch {
	case p.heard.IsZero():
	case m.opts.Pinger == nil:
		at = p.heard.Add(max(DownAlone, 2*p.next+DownAlone/2))
	default:
		at = earlier(p.heard.Add(DownAfter+max(p.next-ReportInterval, 0)), p.suspectSince.Add(DownAfter))
		if !p.answered.IsZero() {
			at = earlier(later(at, p.answered.Add(DownAfter)), p.suspectSince.Add(SilentAlive))
		}
	}
	return later(at, p.graceUntil)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// pingSilent asks the hives that the leader doubts for signs of life until ctx ends.
func (m *Monitor) pingSilent(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxPings)
	timer := time.NewTimer(PingInterval)
	defer timer.Stop()
	for {
		m.mu.Lock()
		ids := make([]string, 0, len(m.silent))
		for id := range m.silent { // in another order each time, so that all get their turn when there are many
			ids = append(ids, id)
		}
		m.mu.Unlock()
		if len(ids) == 0 {
			select {
			case <-m.doubt:
				continue
			case <-ctx.Done():
				return
			}
		}
	round:
		for _, id := range ids {
			select {
			case slots <- struct{}{}:
				wg.Go(func() {
					defer func() { <-slots }()
					m.ping(ctx, id)
				})
			default:
				break round
			}
		}
		timer.Reset(PingInterval)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}

// ping asks one hive for a sign of life and notes the outcome.
func (m *Monitor) ping(ctx context.Context, hive string) {
	limited, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	err := m.opts.Pinger.Ping(limited, hive)
	if ctx.Err() != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.silent[hive]
	if !ok {
		return // it has reported meanwhile, or is down
	}
	if err != nil {
		p.unanswered++
		return
	}
	p.answered, p.unanswered = time.Now(), 0
	if !p.downAt.IsZero() {
		p.downAt = m.downAtLocked(p)
	}
}

// TakeOver starts with the hives of the registry and with what this queen heard of them before it
// led. Hives that have no link to it get LinkGrace.
func (m *Monitor) TakeOver() {
	now := time.Now()
	m.opts.TermChanged()
	registry := m.opts.Registry.View()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leading = true
	hives := 0
	registry.EachHive(nil, func(h *core.Hive) bool {
		hives++
		p := m.peerLocked(h.ID)
		switch {
		case p.link != nil:
		case h.Status == core.HiveDown:
			p.forgetAt = now.Add(ForgetAfter)
		default:
			p.graceUntil, p.forgetAt = now.Add(LinkGrace), time.Time{}
			m.doubtLocked(p)
		}
		m.scheduleLocked(p)
		return true
	})
	behind := 0
	for _, p := range m.peers {
		if p.link == nil || p.report == nil {
			continue // an older report is no news
		}
		if same, _ := p.report.registered(registry); same {
			p.registeredLocked()
		} else {
			behind++
			m.dirtyLocked(p)
		}
		if p.suspect != "" {
			m.doubtLocked(p)
		} else if m.opts.Pinger == nil {
			p.downAt = m.downAtLocked(p)
		}
		m.scheduleLocked(p)
	}
	m.changedLocked()
	m.log.Info("leading the cluster", "hives", hives, "links", m.links, "behind", behind)
}

// StepDown drops what only a leader needs.
func (m *Monitor) StepDown() {
	defer m.opts.TermChanged()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leading = false
	for _, p := range m.peers {
		p.downAt, p.graceUntil, p.answered, p.unanswered = time.Time{}, time.Time{}, time.Time{}, 0
		p.dirty, p.writing, p.gone, p.forget = false, false, false, false
		if p.link == nil && p.report == nil {
			m.dropLocked(p)
		}
	}
	m.dirty, m.gone = nil, nil
	clear(m.silent)
	m.changedLocked()
	m.log.Info("no longer leading the cluster")
}

// Leads reports whether this queen has taken over the leadership, as far as it knows.
func (m *Monitor) Leads() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leading
}
