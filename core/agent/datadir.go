package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/disk"
)

// lockDataDir creates the data folder and locks it against other agents until unlock is called.
// Errors: InUse, Internal.
func lockDataDir(dir string) (unlock func(), err error) {
	if err := disk.MakeFolder(dir); err != nil {
		return nil, core.WithHint(core.Wrap(err, core.Internal, "make the data folder"), "Choose another folder with -data-dir or data_dir = ….")
	}
	f, err := os.OpenFile(filepath.Join(dir, "agent.lock"), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, core.WithHint(core.Wrap(err, core.Internal, "open the data folder"), "The folder must belong to the user who runs the agent.")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, core.Errorf(core.InUse, "another agent uses the data folder %s", dir).Hint(
			"Use that agent (\"rbee status\"), stop it, or choose another folder with -data-dir.")
	}
	return func() { f.Close() }, nil
}

const (
	// stopPatience bounds the wait for a stopping agent, however long the grace period of its
	// workers.
	stopPatience = 2 * time.Minute
	stopPoll     = 50 * time.Millisecond
)

// awaitDataDir is lockDataDir for an agent that starts: it waits for the previous agent if that one
// is stopping. Errors: those of lockDataDir and ctx.
func awaitDataDir(ctx context.Context, dir string) (unlock func(), err error) {
	limited, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	tick := time.NewTicker(stopPoll)
	defer tick.Stop()
	for {
		unlock, err := lockDataDir(dir)
		if core.KindOf(err) != core.InUse || !stopping(dir) {
			return unlock, err
		}
		select {
		case <-tick.C:
		case <-limited.Done():
			if ctx.Err() != nil {
				return nil, core.FromContext(ctx)
			}
			return nil, core.WithHint(err, "It was told to end and has not: look at its log, or kill it.")
		}
	}
}

// stopping reports whether the agent that uses a data folder is stopping.
func stopping(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "agent.json"))
	if err != nil {
		return false
	}
	var r Record
	return json.Unmarshal(b, &r) == nil && r.Stopping
}

// nodeID returns this machine's ID in the cluster: random at the first start, then kept in the data
// folder.
func nodeID(dataDir string) (string, error) {
	path := filepath.Join(dataDir, "node-id")
	b, err := os.ReadFile(path)
	if err == nil && len(b) > 0 {
		return string(b), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", core.Wrap(err, core.Internal, "read the node id")
	}
	id := make([]byte, 4)
	_, _ = rand.Read(id) // never fails
	name := fmt.Sprintf("%x", id)
	return name, writeFile(path, []byte(name))
}

func writeRecord(dataDir string, r Record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return core.Wrap(err, core.Internal, "write agent.json")
	}
	return writeFile(filepath.Join(dataDir, "agent.json"), append(b, '\n'))
}

// writeFile writes a file atomically.
func writeFile(path string, data []byte) error {
	return core.Wrap(disk.Replace(path, data, 0o600), core.Internal, "write "+path)
}
