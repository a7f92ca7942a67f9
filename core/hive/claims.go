package hive

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/rbee-project/rbee/core"
)

// claims protect what is about to be used from deletion, and keep what is being deleted from being
// used. A worker enters the roster before its claims end.
type claims struct {
	store  shelf
	roster *roster

	mu       sync.Mutex               // guards below
	launches map[string]int           // folders of binaries that workers are about to run from
	leaving  map[string]bool          // folders of binaries that are being deleted
	loads    map[string]int           // models that workers are about to load
	deleting map[string]chan struct{} // models that are being deleted; each channel is closed when the deletion ends
}

func newClaims(s shelf, r *roster) *claims {
	return &claims{store: s, roster: r, launches: map[string]int{}, leaving: map[string]bool{}, loads: map[string]int{}, deleting: map[string]chan struct{}{}}
}

// beginDelete keeps a model from being loaded until done is called. It fails if the model is
// already in use.
func (c *claims) beginDelete(id string) (done func(), err error) {
	const what = "delete model"
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deleting[id] != nil {
		return nil, core.Errorf(core.Conflict, "%s: %s is being deleted already", what, id).Hint("Look at `rbee job list`.")
	}
	var users []string
	for _, w := range c.roster.all() {
		if w.handle.Model == id {
			users = append(users, w.id())
		}
	}
	slices.Sort(users)
	switch {
	case len(users) > 0:
		return nil, core.Errorf(core.InUse, "%s: %s is loaded by %s", what, id, strings.Join(users, ", ")).Hint(
			"Retire them first: `rbee worker retire %s`.", strings.Join(users, " "))
	case c.loads[id] > 0:
		return nil, core.Errorf(core.InUse, "%s: a worker is about to load %s", what, id).Hint("Cancel the job that starts it (`rbee job list`), or wait for it and retire the worker.")
	}
	over := make(chan struct{})
	c.deleting[id] = over
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.deleting, id)
		close(over)
	}, nil
}

// holdModel keeps a model from being deleted until release is called. Errors: only ctx's.
func (c *claims) holdModel(ctx context.Context, id string) (release func(), err error) {
	for {
		c.mu.Lock()
		over := c.deleting[id]
		if over == nil {
			c.loads[id]++
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				if c.loads[id]--; c.loads[id] == 0 {
					delete(c.loads, id)
				}
			}, nil
		}
		c.mu.Unlock()
		select {
		case <-over:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the end of a deletion: %w", core.FromContext(ctx))
		}
	}
}

// beginRemove keeps workers from launching out of the folders of a worker binary. It fails if one
// already runs from them. Errors: InUse.
func (c *claims) beginRemove(binary string, folders []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if users := c.usersLocked(folders); len(users) > 0 {
		return core.Errorf(core.InUse, "delete worker binary: %s is in use by %s", binary, strings.Join(users, ", ")).Hint(
			"End what uses it first: \"rbee worker retire ID\".")
	}
	for _, f := range folders {
		c.leaving[f] = true
	}
	return nil
}

// endRemove ends what beginRemove began.
func (c *claims) endRemove(folders []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range folders {
		delete(c.leaving, f)
	}
}

// usersLocked names what runs from the folders, or is about to.
func (c *claims) usersLocked(folders []string) []string {
	var users []string
	for _, w := range c.roster.all() {
		if slices.Contains(folders, filepath.Dir(w.handle.Attachment.Executable)) {
			users = append(users, "worker "+w.id())
		}
	}
	slices.Sort(users)
	for _, f := range folders {
		// A launch whose worker is already registered holds its claim a moment longer.
		if c.launches[f] > 0 && len(users) == 0 {
			users = append(users, "a worker that is just being started, or a probe")
		}
	}
	return users
}

// holdBinary returns the paths of a worker binary, found as store.Binary does, and keeps its folder
// until release is called. The digests of its files have been verified. Errors: those of the store,
// Conflict while it is being deleted.
func (c *claims) holdBinary(ctx context.Context, id string) (exe, engine string, release func(), err error) {
	if exe, engine, err = c.store.BinaryPaths(id); err != nil {
		return "", "", nil, err
	}
	folder := filepath.Dir(exe)
	c.mu.Lock()
	leaving := c.leaving[folder]
	if !leaving {
		c.launches[folder]++
	}
	c.mu.Unlock()
	if leaving {
		return "", "", nil, core.Errorf(core.Conflict, "worker binary %s is being deleted", id)
	}
	release = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.launches[folder]--; c.launches[folder] == 0 {
			delete(c.launches, folder)
		}
	}
	if err := c.store.CheckBinary(ctx, folder); err != nil {
		release()
		return "", "", nil, err
	}
	return exe, engine, release, nil
}

// folderInUse reports whether a worker runs from that folder of a worker binary, or is about to.
func (c *claims) folderInUse(folder string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.roster.all() {
		if filepath.Dir(w.handle.Attachment.Executable) == folder {
			return true
		}
	}
	return c.launches[folder] > 0
}
