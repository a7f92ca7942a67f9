// Package job runs operations as jobs, with a lifecycle, numbered events from which readers can
// resume, and cancellation.
package job

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
)

// Defaults of Options.
const (
	DefaultRetain    = 200
	DefaultMaxEvents = 1000
	DefaultMaxAge    = 7 * 24 * time.Hour
	DefaultMaxBytes  = 64 << 20
)

const (
	// maxResultBytes bounds the JSON of a result, which must fit into one message of 4 MiB.
	maxResultBytes = 3 << 20
	// maxHistoryBytes bounds the kept events of a job, excluding its result and its end.
	maxHistoryBytes = 1 << 20
)

// Causes of a job's cancelled context.
var (
	errCancelled = core.WithKind(errors.New("the job was cancelled"), core.Cancelled)
	errShutdown  = core.WithHint(core.WithKind(errors.New("the job was cancelled: the agent is shutting down"), core.Cancelled),
		"Submit the request again when it is back.")
)

// Options configure a Manager.
type Options struct {
	Owner     string           // ID of the node that owns the jobs: the tail of every job ID
	Version   string           // version of the program, for errors about unknown operations
	Now       func() time.Time // stamps jobs and events; nil: time.Now
	Retain    int              // ended jobs to keep, newest first; 0: DefaultRetain
	MaxEvents int              // events kept per job; 0: DefaultMaxEvents
	MaxAge    time.Duration    // how long an ended job is kept; 0: DefaultMaxAge
	MaxBytes  int64            // total size of the files of ended jobs; 0: DefaultMaxBytes
	// Dir is the folder in which Open keeps the jobs, one file per job; New ignores it.
	//
	// An event is written to the file before any reader sees it, so that it survives even a killed
	// agent. The end of a job, with its result, is flushed to disk before any reader sees it, so
	// that it also survives a loss of power. Earlier events may not: a reader that has seen lost
	// events gets the end of the job with the next number. Private operations (operation.Spec) stay
	// in memory only. If a file cannot be written, the job continues.
	Dir string
	// Trouble is called for a job whose file cannot be written, read or removed; nil: not called.
	// It must not call the Manager.
	Trouble func(id string, err error)
	// Panicked is called for an operation that panicked, with the stack; nil: not called. It must
	// not call the Manager.
	Panicked func(id string, op core.Operation, value any, stack []byte)
}

// Manager owns the jobs of one agent: those of its hive and those of its queen. It is safe for
// concurrent use.
type Manager struct {
	opts Options
	wg   sync.WaitGroup // running operations

	mu        sync.Mutex // guards below, and the fields of every job
	closed    bool
	jobs      map[string]*job
	requests  map[string]*job // by request ID
	funcs     map[core.Operation]Func
	ended     []*job // oldest first
	entropy   io.Reader
	lastStamp uint64 // timestamp of the newest ID, in milliseconds
}

// New returns a Manager without jobs, which keeps its jobs in memory.
func New(opts Options) *Manager {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	opts.Retain = cmp.Or(opts.Retain, DefaultRetain)
	opts.MaxEvents = cmp.Or(opts.MaxEvents, DefaultMaxEvents)
	opts.MaxAge = cmp.Or(opts.MaxAge, DefaultMaxAge)
	opts.MaxBytes = cmp.Or(opts.MaxBytes, DefaultMaxBytes)
	return &Manager{
		opts:     opts,
		jobs:     map[string]*job{},
		requests: map[string]*job{},
		funcs:    map[core.Operation]Func{},
		entropy:  ulid.Monotonic(rand.Reader, 0),
	}
}

// job is one job. Its fields are guarded by Manager.mu.
type job struct {
	view      core.Job
	requestID string
	cancel    context.CancelCauseFunc
	events    history
	phases    phases
	changed   chan struct{} // closed and replaced at every event
	over      bool          // its operation has returned; readers may not see the end yet

	path      string        // path of its file; empty: kept in memory only
	sizeBytes int64         // size of its file, once the job has ended
	queue     []core.Event  // not yet in the file, without numbers
	kick      chan struct{} // buffered 1: signals that the queue is not empty
}

// Start runs fn as a new job and returns the job at once. The job belongs to the manager, not to
// the caller's request: only Cancel and Close end its context. fn's result is kept as JSON (nil: no
// result), its error becomes the failure, and a panic becomes an Internal failure.
//
// If a kept job already has the requestID, Start returns that job and does not run fn; an empty
// requestID matches none. After Close, the job fails at once as Unavailable.
func (m *Manager) Start(op core.Operation, requestID string, fn func(ctx context.Context, r *Run) (any, error)) core.Job {
	j, kept := m.start(op, requestID, fn)
	<-kept // the file exists: the job now survives whatever happens to the agent
	m.mu.Lock()
	defer m.mu.Unlock()
	return j.copyLocked()
}

// start also returns kept, which closes once the job has its file or needs none.
func (m *Manager) start(op core.Operation, requestID string, fn func(ctx context.Context, r *Run) (any, error)) (j *job, kept <-chan struct{}) {
	done := make(chan struct{})
	m.mu.Lock()
	defer m.mu.Unlock()
	if j, ok := m.requests[requestID]; ok && requestID != "" {
		close(done)
		return j, done
	}
	j = &job{
		view: core.Job{
			ID: m.newIDLocked(), Operation: op, Hive: m.opts.Owner, State: core.JobRunning, CreatedAt: m.opts.Now(),
		},
		requestID: requestID,
		events:    history{max: m.opts.MaxEvents},
		changed:   make(chan struct{}),
	}
	m.jobs[j.view.ID] = j
	if requestID != "" {
		m.requests[requestID] = j
	}
	if m.closed {
		j.cancel = func(error) {}
		err := core.Errorf(core.Unavailable, "the agent is shutting down").Hint("Try again when it is back.")
		m.endLocked(j, core.JobFailed, nil, err)
		close(done)
		return j, done
	}
	// The job outlives the request that started it, so its context has no parent; Close cancels it.
	ctx, cancel := context.WithCancelCause(context.Background())
	j.cancel = cancel
	if spec, err := operation.Find(op); m.opts.Dir == "" || err == nil && spec.Private {
		close(done)
		m.wg.Go(func() { m.run(ctx, j, fn) })
		return j, done
	}
	h := header{ID: j.view.ID, Operation: op, RequestID: requestID, At: j.view.CreatedAt.UnixNano()}
	m.wg.Go(func() {
		l, err := createLog(m.opts.Dir, h)
		if err == nil {
			m.mu.Lock()
			j.path, j.kick = l.path, make(chan struct{}, 1)
			m.mu.Unlock()
			m.wg.Go(func() { m.keep(j, l) })
		} else if m.opts.Trouble != nil {
			m.opts.Trouble(h.ID, err)
		}
		close(done)
		m.run(ctx, j, fn)
	})
	return j, done
}

// newIDLocked returns an ID that sorts after every earlier one, even when the clock is set back.
func (m *Manager) newIDLocked() string {
	m.lastStamp = max(m.lastStamp, ulid.Timestamp(m.opts.Now()))
	for {
		id, err := ulid.New(m.lastStamp, m.entropy)
		if err == nil {
			return strings.ToLower(id.String()) + "-" + m.opts.Owner
		}
		m.lastStamp++ // this millisecond has no IDs left
	}
}

// Owner returns the ID of the node that owns the job. Errors: Invalid.
func Owner(id string) (node string, err error) {
	stamp, node, ok := strings.Cut(id, "-")
	if _, parseErr := ulid.ParseStrict(strings.ToUpper(stamp)); !ok || parseErr != nil || node == "" || stamp != strings.ToLower(stamp) {
		return "", core.Errorf(core.Invalid, "%q is not a job id", id).Hint("List the jobs to see their ids.")
	}
	return node, nil
}

// run runs the operation and ends the job, even if the operation exits its goroutine.
func (m *Manager) run(ctx context.Context, j *job, fn func(context.Context, *Run) (any, error)) {
	var result json.RawMessage
	var err error = core.Errorf(core.Internal, "%s ended without a result", j.view.Operation)
	defer func() { m.end(ctx, j, result, err) }()
	result, err = m.call(ctx, j, fn)
}

// call runs fn and encodes its result; it turns a panic into an error.
func (m *Manager) call(ctx context.Context, j *job, fn func(context.Context, *Run) (any, error)) (data json.RawMessage, err error) {
	id, op := j.view.ID, j.view.Operation // immutable after Start
	defer func() {
		if value := recover(); value != nil {
			if m.opts.Panicked != nil {
				m.opts.Panicked(id, op, value, debug.Stack())
			}
			data = nil
			err = core.Errorf(core.Internal, "%s crashed: %v", op, value).Hint(
				"This is a defect: please report it with the agent's log.")
		}
	}()
	result, err := fn(ctx, &Run{m: m, j: j, id: id})
	if err != nil || result == nil {
		return nil, err
	}
	if data, err = json.Marshal(result); err != nil {
		return nil, core.Errorf(core.Internal, "encode the result: %w", err)
	}
	if len(data) > maxResultBytes {
		return nil, core.Errorf(core.TooLarge, "keep the result: it has %d bytes; at most %d are kept", len(data), maxResultBytes)
	}
	return data, nil
}

func (m *Manager) end(ctx context.Context, j *job, result json.RawMessage, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch cause := context.Cause(ctx); {
	case err == nil:
		m.endLocked(j, core.JobSucceeded, result, nil)
	case cause == nil:
		m.endLocked(j, core.JobFailed, nil, err)
	case core.KindOf(err) == core.Cancelled:
		m.endLocked(j, core.JobCancelled, nil, cause)
	default:
		// It was cancelled and stopped, but with an error worth reporting.
		m.endLocked(j, core.JobCancelled, nil, err)
	}
	j.cancel(nil)
}

func (m *Manager) endLocked(j *job, state core.JobState, result json.RawMessage, err error) {
	m.flushLocked(j, true)
	if result != nil {
		m.emitLocked(j, core.Event{Kind: core.EventResult, Result: result})
	}
	m.emitLocked(j, core.Event{Kind: core.EventEnd, State: state, Error: core.FailureOf(err)})
	j.over = true
	if j.kick == nil {
		m.pruneLocked()
	}
}

// emitLocked numbers an event, then shows it to the readers or queues it for the job's file first.
func (m *Manager) emitLocked(j *job, e core.Event) {
	e.At = m.opts.Now()
	if j.kick == nil {
		e.Seq = j.view.LastSeq + 1
		m.publishLocked(j, e)
		return
	}
	j.queue = trim(append(j.queue, e), j.events.max) // a stuck disk must not fill the memory
	select {
	case j.kick <- struct{}{}:
	default:
	}
}

// publishLocked shows an event to readers and updates the job.
func (m *Manager) publishLocked(j *job, e core.Event) {
	j.view.LastSeq = e.Seq
	j.events.add(e)
	switch e.Kind {
	case core.EventResult:
		j.view.Result = e.Result
	case core.EventEnd:
		j.view.State, j.view.EndedAt, j.view.Error = e.State, e.At, e.Error
		m.ended = append(m.ended, j)
	}
	close(j.changed)
	j.changed = make(chan struct{})
}

// copyLocked returns the job for a caller. Result and Error are immutable once written, so callers
// share them.
func (j *job) copyLocked() core.Job { return j.view }

func (m *Manager) find(id string) (*job, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if j, ok := m.jobs[id]; ok {
		return j, nil
	}
	return nil, core.Errorf(core.NotFound, "there is no job %q on node %s", id, m.opts.Owner).Hint(
		"The last %d ended jobs are kept; list them to see their ids.", m.opts.Retain)
}

// Get returns a job. Errors: NotFound.
func (m *Manager) Get(id string) (core.Job, error) {
	j, err := m.find(id)
	if err != nil {
		return core.Job{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return j.copyLocked(), nil
}

// ByRequest returns the kept job that the request with this ID started.
func (m *Manager) ByRequest(requestID string) (core.Job, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	j, ok := m.requests[requestID]
	if !ok || requestID == "" {
		return core.Job{}, false
	}
	return j.copyLocked(), true
}

// List returns the running and the kept ended jobs, newest first; private ones without their
// results.
func (m *Manager) List() []core.Job {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]core.Job, 0, len(m.jobs))
	for _, j := range m.jobs {
		view := j.copyLocked()
		if spec, err := operation.Find(view.Operation); err == nil && spec.Private {
			view.Result = nil // only callers who ask for this job get it
		}
		list = append(list, view)
	}
	slices.SortFunc(list, func(a, b core.Job) int { return cmp.Compare(b.ID, a.ID) })
	return list
}

// Cancel asks a job to stop and returns its current state. The job ends, as JobCancelled, once its
// operation has cleaned up. An ended job does not change. Errors: NotFound.
func (m *Manager) Cancel(id string) (core.Job, error) {
	j, err := m.find(id)
	if err != nil {
		return core.Job{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	j.cancel(errCancelled)
	return j.copyLocked(), nil
}

// Events calls emit in order for every kept event with a number greater than after, then for new
// events as they happen. It returns nil after the end event, the error of emit, or ctx's. Any
// number of readers may follow a job, and a slow reader does not delay the others: a reader that
// falls behind by more than the kept events misses the oldest progress. Errors: NotFound.
func (m *Manager) Events(ctx context.Context, id string, after int64, emit func(core.Event) error) error {
	j, err := m.find(id)
	if err != nil {
		return err
	}
	for {
		m.mu.Lock()
		events, changed, ended, path, last := j.events.after(after), j.changed, j.view.State != core.JobRunning, j.path, j.view.LastSeq
		stored := j.events.dropped
		m.mu.Unlock()
		if stored {
			if events, err = readEvents(path); err != nil {
				return core.Wrap(err, core.NotFound, "read job "+id) // it has just been pruned
			}
			if after >= last && len(events) > 0 {
				end := events[len(events)-1]
				if end.Seq = after + 1; after == last {
					return nil
				}
				return emit(end) // a loss of power destroyed events that this reader has seen
			}
		}
		for _, e := range events {
			if e.Seq <= after {
				continue
			}
			if err := ctx.Err(); err != nil {
				return core.Prefix(err, "follow job")
			}
			if err := emit(e); err != nil {
				return err
			}
			after = e.Seq
		}
		if ended {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("follow job: %w", core.FromContext(ctx))
		}
	}
}

// Close cancels all jobs and waits until their operations have returned. No job starts afterwards;
// existing ones remain readable. It returns ctx's error if an operation does not end in time.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	m.closed = true
	for _, j := range m.jobs {
		j.cancel(errShutdown)
	}
	m.mu.Unlock()

	done := make(chan struct{})
	// This goroutine ends with the last operation; ctx bounds only the wait for it.
	go func() { m.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return core.Wrap(fmt.Errorf("%d still running: %w", m.running(), ctx.Err()), core.KindOf(ctx.Err()), "wait for the jobs to end")
	}
}

func (m *Manager) running() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.jobs) - len(m.ended)
}
