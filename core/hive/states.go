package hive

import (
	"cmp"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core/disk"
	"github.com/rbee-project/rbee/core/pluginhost"
)

// State files hold what a worker has read of conversations. They are kept when the worker is
// unloaded to make room for another model, and handed to the next worker of the same type and
// model. They contain the text of users. The worker writes and reads them in its private folder; in
// between they lie in a folder that plugins cannot access. The worker validates what it gets: here
// they are opaque bytes.

const (
	// stateName is the name of the file in a worker's private folder.
	stateName = "state"
	// maxStates and maxStateBytes bound the kept files; the oldest are removed first.
	maxStates           = 32
	maxStateBytes int64 = 8 << 30
	// maxStateAge is how long a file is kept.
	maxStateAge = 7 * 24 * time.Hour
)

// workerState returns the path at which a worker writes its state.
func (l layout) workerState(worker string) string {
	return filepath.Join(pluginhost.PrivateDir(l.runDir(worker)), stateName)
}

func shortHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:12])
}

// keptState returns the path at which the state of a worker of that type with that model is kept.
func (l layout) keptState(typ, digest string) string {
	return filepath.Join(l.states, shortHash(digest)+"-"+shortHash(typ))
}

// states keeps workers' state files.
type states struct {
	log    hclog.Logger
	now    func() time.Time
	disk   layout
	secret []byte // not changed

	mu sync.Mutex // held while the folder changes
}

func newStates(log hclog.Logger, now func() time.Time, disk layout) *states {
	ks := &states{log: log, now: now, disk: disk, secret: make([]byte, sha256.Size)}
	_, _ = rand.Read(ks.secret) // never fails
	ks.bound()
	return ks
}

// hand gives a new worker the state that an earlier one kept, and returns the file to which it may
// write its own; empty: none, as the model has no digest.
func (ks *states) hand(hd handle) string {
	if hd.ModelDigest == "" {
		return ""
	}
	to := ks.disk.workerState(hd.id())
	ks.mu.Lock()
	defer ks.mu.Unlock()
	err := os.Rename(ks.disk.keptState(hd.Attachment.Type, hd.ModelDigest), to)
	if err != nil && !os.IsNotExist(err) {
		ks.log.Warn("failed to hand over a kept state", "worker", hd.id(), "error", err)
	}
	return to
}

// keep stores the state of an ended worker, if requested, and otherwise removes the earlier state
// of its model.
func (ks *states) keep(w *worker) {
	typ, digest := w.handle.Attachment.Type, w.handle.ModelDigest
	if digest == "" {
		return
	}
	w.mu.Lock()
	keep := w.keep
	w.mu.Unlock()
	ks.mu.Lock()
	defer ks.mu.Unlock()
	from, to := ks.disk.workerState(w.id()), ks.disk.keptState(typ, digest)
	info, err := os.Lstat(from)
	switch {
	case !w.wasAsked(): // it died, or the agent ends: other workers' state stays
		return
	case !keep:
		err = disk.Remove(to)
	case os.IsNotExist(err):
		return
	case err == nil && info.Mode().IsRegular():
		if err = os.Rename(from, to); err == nil {
			now := ks.now()
			err = os.Chtimes(to, now, now)
			ks.log.Info("state of a model kept", "worker", w.id(), "model", w.handle.Model, "bytes", info.Size())
		}
	}
	if err != nil {
		ks.log.Warn("failed to keep or remove the state of a model", "worker", w.id(), "error", err)
	}
	ks.boundLocked()
}

// forget removes the kept state of a model.
func (ks *states) forget(digest string) {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	for _, s := range ks.listLocked() {
		if strings.HasPrefix(s.name, shortHash(digest)+"-") {
			ks.removeLocked(s.name)
		}
	}
}

// bound removes state files that are too old or too many.
func (ks *states) bound() {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	ks.boundLocked()
}

type keptState struct {
	name string
	size int64
	at   time.Time
}

// listLocked lists the kept files, newest first.
func (ks *states) listLocked() []keptState {
	entries, err := os.ReadDir(ks.disk.states)
	if err != nil {
		ks.log.Warn("failed to read the folder of kept states", "error", err)
		return nil
	}
	var out []keptState
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			out = append(out, keptState{e.Name(), info.Size(), info.ModTime()})
		}
	}
	slices.SortFunc(out, func(a, b keptState) int { return cmp.Or(b.at.Compare(a.at), strings.Compare(a.name, b.name)) })
	return out
}

func (ks *states) boundLocked() {
	var bytes int64
	for i, s := range ks.listLocked() {
		bytes += s.size
		if i >= maxStates || bytes > maxStateBytes || ks.now().Sub(s.at) > maxStateAge {
			ks.removeLocked(s.name)
		}
	}
}

func (ks *states) removeLocked(name string) {
	if err := os.RemoveAll(filepath.Join(ks.disk.states, name)); err != nil {
		ks.log.Warn("failed to remove a kept state", "error", err)
	}
}

// prefixKey returns the secret of a model for the block hashes of its workers here, so that these
// can be compared with one another but reveal nothing without the secret. It changes with each
// start of the agent.
func (ks *states) prefixKey(digest string) []byte {
	mac := hmac.New(sha256.New, ks.secret)
	_, _ = mac.Write([]byte(digest)) // never fails
	return mac.Sum(nil)
}
