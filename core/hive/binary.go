package hive

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// binaryDelete removes a worker binary that nothing runs from.
func (h *Hive) binaryDelete(ctx context.Context, r core.Request, run *job.Run) (core.WorkerBinary, error) {
	var claimed []string
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, f := range claimed {
			delete(h.leaving, f)
		}
	}()
	b, err := h.store.DeleteBinary(r.Binary, func(folders []string) error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if users := h.usersLocked(folders); len(users) > 0 {
			return core.Errorf(core.InUse, "delete worker binary: %s is in use by %s", r.Binary, strings.Join(users, ", ")).Hint(
				"End what uses it first: \"rbee worker retire ID\".")
		}
		for _, f := range folders {
			h.leaving[f] = true
		}
		claimed = folders
		return nil
	})
	if err != nil {
		return core.WorkerBinary{}, err
	}
	run.Log("worker binary %s is deleted", b.ID)
	h.forgetType(ctx, b.Type)
	return b, nil
}

// usersLocked names what runs from the folders, or is about to.
func (h *Hive) usersLocked(folders []string) []string {
	var users []string
	for _, w := range h.workers {
		if slices.Contains(folders, filepath.Dir(w.handle.Attachment.Executable)) {
			users = append(users, "worker "+w.id())
		}
	}
	slices.Sort(users)
	for _, f := range folders {
		// What is launched and registered already is held for a moment longer.
		if h.launches[f] > 0 && len(users) == 0 {
			users = append(users, "a worker that is just being started, or a probe")
		}
	}
	return users
}

// holdBinary gives the paths of a worker binary, found as store.Binary does, and keeps its folder
// until release is called. Its files have their digests. Errors: those of the store, Conflict while
// it is being deleted.
func (h *Hive) holdBinary(ctx context.Context, id string) (exe, engine string, release func(), err error) {
	if exe, engine, err = h.store.BinaryPaths(id); err != nil {
		return "", "", nil, err
	}
	folder := filepath.Dir(exe)
	h.mu.Lock()
	leaving := h.leaving[folder]
	if !leaving {
		h.launches[folder]++
	}
	h.mu.Unlock()
	if leaving {
		return "", "", nil, core.Errorf(core.Conflict, "worker binary %s is being deleted", id)
	}
	release = func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.launches[folder]--; h.launches[folder] == 0 {
			delete(h.launches, folder)
		}
	}
	if err := h.store.CheckBinary(ctx, folder); err != nil {
		release()
		return "", "", nil, err
	}
	return exe, engine, release, nil
}

// removeSuperseded removes the installed files that a renewal has replaced and that no worker runs
// from.
func (h *Hive) removeSuperseded() {
	if err := h.store.RemoveSuperseded(h.folderInUse); err != nil {
		h.log.Warn("remove superseded worker binaries", "error", err)
	}
}

// engineOf picks the engine of a plugin for a version: that of the engine (v0.5.0 or 0.5.0), of the
// package that has it (3.22.1), or of the worker binary as a whole. Empty: the plugin's first
// choice. Errors: NotFound with the versions there are.
func engineOf(typ string, info sdk.Info, version string) (sdk.Engine, error) {
	var names []string
	for _, e := range append([]sdk.Engine{info.Engine}, info.OtherEngines...) {
		whole := binaryVersion(info, e)
		_, packaged, _ := cutLast(e.Ref, "@")
		if version == "" || version == whole || e.Name != "" && slices.Contains([]string{e.Version, strings.TrimPrefix(e.Version, "v"), packaged}, version) {
			return e, nil
		}
		if e.Name == "" {
			names = append(names, whole)
		} else {
			names = append(names, e.Version+" ("+e.Ref+")")
		}
	}
	return sdk.Engine{}, core.Errorf(core.NotFound, "install worker type: worker type %s has no version %q", typ, version).Hint(
		"It has: %s.", strings.Join(names, ", "))
}

// engineByRef is the engine of a plugin that a reference names.
func engineByRef(info sdk.Info, ref string) (sdk.Engine, bool) {
	for _, e := range append([]sdk.Engine{info.Engine}, info.OtherEngines...) {
		if e.Name != "" && e.Ref == ref {
			return e, true
		}
	}
	return sdk.Engine{}, false
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
