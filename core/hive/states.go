package hive

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core/disk"
	"github.com/rbee-project/rbee/core/pluginhost"
)

// State files: what a worker read of conversations, kept when it is unloaded to make room for
// another model, and handed to the next worker of the same type and model. They hold the text of
// users. The worker writes and reads them, in its private folder; in between they lie in a folder
// that is closed to plugins. The worker checks what it gets: here they are bytes.

const (
	// stateName is the name of the file in a worker's private folder.
	stateName = "state"
	// maxStates and maxStateBytes bound what is kept; what was kept first goes first.
	maxStates           = 32
	maxStateBytes int64 = 8 << 30
	// maxStateAge is how long it is kept.
	maxStateAge = 7 * 24 * time.Hour
)

// workerState is where a worker writes its state.
func (l layout) workerState(worker string) string {
	return filepath.Join(pluginhost.PrivateDir(l.runDir(worker)), stateName)
}

func shortHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:12])
}

// keptState is where the state of a worker of that type with that model is kept.
func (l layout) keptState(typ, digest string) string {
	return filepath.Join(l.states, shortHash(digest)+"-"+shortHash(typ))
}

// handState gives a new worker what an earlier one kept, and returns the file that it may keep its
// own in; empty: none, as the model has no digest.
func (h *Hive) handState(hd handle) string {
	if hd.ModelDigest == "" {
		return ""
	}
	to := h.disk.workerState(hd.id())
	h.statesMu.Lock()
	defer h.statesMu.Unlock()
	err := os.Rename(h.disk.keptState(hd.Attachment.Type, hd.ModelDigest), to)
	if err != nil && !os.IsNotExist(err) {
		h.log.Warn("failed to hand over a kept state", "worker", hd.id(), "error", err)
	}
	return to
}

// keepState takes what an ended worker kept, where that is wanted, and otherwise forgets what was
// kept of its model before.
func (h *Hive) keepState(w *worker) {
	typ, digest := w.handle.Attachment.Type, w.handle.ModelDigest
	if digest == "" {
		return
	}
	w.mu.Lock()
	keep := w.keep
	w.mu.Unlock()
	h.statesMu.Lock()
	defer h.statesMu.Unlock()
	from, to := h.disk.workerState(w.id()), h.disk.keptState(typ, digest)
	info, err := os.Lstat(from)
	switch {
	case !w.wasAsked(): // it died, or the agent ends: what others kept stays
		return
	case !keep:
		err = disk.Remove(to)
	case os.IsNotExist(err):
		return
	case err == nil && info.Mode().IsRegular():
		if err = os.Rename(from, to); err == nil {
			now := h.now()
			err = os.Chtimes(to, now, now)
			h.log.Info("state of a model kept", "worker", w.id(), "model", w.handle.Model, "bytes", info.Size())
		}
	}
	if err != nil {
		h.log.Warn("failed to keep or remove the state of a model", "worker", w.id(), "error", err)
	}
	h.boundStatesLocked()
}

// forgetStates removes what is kept of a model.
func (h *Hive) forgetStates(digest string) {
	h.statesMu.Lock()
	defer h.statesMu.Unlock()
	for _, s := range h.statesLocked() {
		if strings.HasPrefix(s.name, shortHash(digest)+"-") {
			h.removeStateLocked(s.name)
		}
	}
}

// boundStates removes what is too old or too much.
func (h *Hive) boundStates() {
	h.statesMu.Lock()
	defer h.statesMu.Unlock()
	h.boundStatesLocked()
}

type keptState struct {
	name string
	size int64
	at   time.Time
}

// statesLocked lists what is kept, the newest first.
func (h *Hive) statesLocked() []keptState {
	entries, err := os.ReadDir(h.disk.states)
	if err != nil {
		h.log.Warn("failed to read the folder of kept states", "error", err)
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

func (h *Hive) boundStatesLocked() {
	var bytes int64
	for i, s := range h.statesLocked() {
		bytes += s.size
		if i >= maxStates || bytes > maxStateBytes || h.now().Sub(s.at) > maxStateAge {
			h.removeStateLocked(s.name)
		}
	}
}

func (h *Hive) removeStateLocked(name string) {
	if err := os.RemoveAll(filepath.Join(h.disk.states, name)); err != nil {
		h.log.Warn("failed to remove a kept state", "error", err)
	}
}

// prefixKey is the secret of a model for the block hashes of its workers here: they can be compared
// with one another, and tell nothing to whoever does not have it. It is new with each start of the
// agent.
func (h *Hive) prefixKey(digest string) []byte {
	mac := hmac.New(sha256.New, h.prefixSecret)
	_, _ = mac.Write([]byte(digest)) // never fails
	return mac.Sum(nil)
}
