package job

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/disk"
)

// errRestarted is the failure of a job that was running when its agent died.
var errRestarted = core.WithHint(core.WithKind(errors.New("the agent was restarted while the job ran"), core.Unavailable),
	"Submit the request again: what was fetched already is kept.")

// Open returns a Manager that keeps its jobs in Options.Dir and restores those of an earlier
// Manager. A job that was running when that one died appears as failed, with all its events.
// Errors: Internal if the folder cannot be used.
func Open(opts Options) (*Manager, error) {
	m := New(opts)
	if err := disk.MakeFolder(m.opts.Dir); err != nil {
		return nil, core.Wrap(err, core.Internal, "open the folder of jobs")
	}
	entries, err := os.ReadDir(m.opts.Dir)
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "open the folder of jobs")
	}
	for _, e := range entries {
		id, isLog := strings.CutSuffix(e.Name(), logSuffix)
		node, err := Owner(id)
		path := filepath.Join(m.opts.Dir, e.Name())
		switch {
		case strings.HasSuffix(e.Name(), logSuffix+".new"), isLog && err == nil && node != m.opts.Owner:
			// A partial file, or a job from a time when this machine had another ID: no client can
			// ask for it.
			err = os.Remove(path)
		case isLog && err == nil && e.Type().IsRegular():
			err = m.load(id, path)
		default:
			continue // not a job's file
		}
		if err != nil && m.opts.Trouble != nil {
			m.opts.Trouble(id, err)
		}
	}
	slices.SortFunc(m.ended, func(a, b *job) int {
		return cmp.Or(a.view.EndedAt.Compare(b.view.EndedAt), cmp.Compare(a.view.ID, b.view.ID))
	})
	m.mu.Lock()
	gone := m.pruneLocked()
	m.mu.Unlock()
	m.remove(gone)
	return m, nil
}

// load restores a job. A job with an unreadable file is lost, and load removes the file.
func (m *Manager) load(id, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return core.Wrap(err, core.Internal, "read a job")
	}
	h, events, good, err := readLog(f)
	if err == nil && h.ID != id {
		err = core.Errorf(core.Integrity, "read a job: its file belongs to another job")
	}
	if err != nil {
		f.Close()
		if core.KindOf(err) == core.Integrity {
			err = errors.Join(err, os.Remove(path))
		}
		return err
	}
	l := &logFile{path: path, h: h, f: f, size: good}
	defer l.close()
	j := &job{
		view:      core.Job{ID: id, Operation: h.Operation, Hive: m.opts.Owner, State: core.JobRunning, CreatedAt: time.Unix(0, h.At).UTC()},
		requestID: h.RequestID, cancel: func(error) {}, changed: make(chan struct{}), over: true, path: path,
	}
	j.events.max = m.opts.MaxEvents
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range events {
		m.publishLocked(j, e)
	}
	if j.view.State == core.JobRunning {
		e := core.Event{Seq: j.view.LastSeq + 1, At: m.opts.Now(), Kind: core.EventEnd, State: core.JobFailed, Error: core.FailureOf(errRestarted)}
		err = f.Truncate(good)
		if err == nil {
			err = l.add([]core.Event{e}, func() []core.Event { return events })
		}
		m.publishLocked(j, e)
	}
	j.sizeBytes = l.size
	j.events.drop()
	m.jobs[id] = j
	if h.RequestID != "" {
		m.requests[h.RequestID] = j
	}
	return err
}

// pruneLocked drops ended jobs until the rest fit the bounds, and returns the files to remove.
func (m *Manager) pruneLocked() (files []string) {
	var bytes int64
	for _, j := range m.ended {
		bytes += j.sizeBytes
	}
	tooOld := m.opts.Now().Add(-m.opts.MaxAge)
	for len(m.ended) > 0 {
		old := m.ended[0]
		if len(m.ended) <= m.opts.Retain && bytes <= m.opts.MaxBytes && old.view.EndedAt.After(tooOld) {
			break
		}
		bytes -= old.sizeBytes
		m.ended = slices.Delete(m.ended, 0, 1)
		delete(m.jobs, old.view.ID)
		if m.requests[old.requestID] == old {
			delete(m.requests, old.requestID)
		}
		if old.path != "" {
			files = append(files, old.path)
		}
	}
	return files
}

func (m *Manager) remove(files []string) {
	for _, path := range files {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) && m.opts.Trouble != nil {
			m.opts.Trouble(strings.TrimSuffix(filepath.Base(path), logSuffix), core.Wrap(err, core.Internal, "remove a job"))
		}
	}
}

// keep writes a job's events to its file and then shows them to readers, until it has written the
// job's end.
func (m *Manager) keep(j *job, l *logFile) {
	defer l.close()
	broken := false
	for {
		m.mu.Lock()
		batch := j.queue
		j.queue = nil
		for i := range batch {
			batch[i].Seq = j.view.LastSeq + 1 + int64(i)
		}
		m.mu.Unlock()
		if len(batch) == 0 {
			<-j.kick
			continue
		}
		kept := func() []core.Event {
			m.mu.Lock()
			defer m.mu.Unlock()
			return j.events.after(0)
		}
		switch {
		case !broken:
			err := l.add(batch, kept)
			if broken = err != nil; broken && m.opts.Trouble != nil {
				m.opts.Trouble(l.h.ID, err)
			}
		case batch[len(batch)-1].Kind == core.EventEnd: // there may be space again
			if broken = l.renew(append(kept(), batch...)) != nil || l.sync() != nil; !broken {
				break
			}
			// Without its end, it would later appear as failed, however it ended.
			gone := l.path
			m.mu.Lock()
			j.path = ""
			m.mu.Unlock()
			m.remove([]string{gone})
			_ = disk.SyncFolder(m.opts.Dir) // nor reappear after a loss of power
		}
		m.mu.Lock()
		for _, e := range batch {
			m.publishLocked(j, e)
		}
		ended := j.view.State != core.JobRunning
		var gone []string
		if ended {
			j.sizeBytes = l.size
			if !broken {
				j.events.drop() // readers read them from the file
			}
			gone = m.pruneLocked()
		}
		m.mu.Unlock()
		m.remove(gone)
		if ended {
			return
		}
	}
}
