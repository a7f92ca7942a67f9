package hive

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/disk"
	"github.com/rbee-project/rbee/core/pluginhost"
)

// maxSocketPathBytes is the length that fits into the address of a unix socket on every platform.
const maxSocketPathBytes = 103

// layout is where a hive keeps its state below the data folder.
type layout struct {
	hive    string // of the hive itself
	handles string // a handle file per worker
	damaged string // handle files that could not be read
	run     string // a folder per worker process
	states  string // what unloaded workers have read of conversations: see states.go
}

// openLayout creates the folders. Errors: Internal, Invalid when paths of sockets would be too
// long.
func openLayout(dataDir string) (layout, error) {
	dir, err := filepath.Abs(dataDir)
	if err != nil {
		return layout{}, core.Wrap(err, core.Internal, "open data folder")
	}
	l := layout{
		hive:    filepath.Join(dir, "hive"),
		handles: filepath.Join(dir, "hive", "workers"),
		damaged: filepath.Join(dir, "hive", "damaged"),
		run:     filepath.Join(dir, "run"),
		states:  filepath.Join(dir, "states"),
	}
	// go-plugin appends a file name of at most 16 characters.
	if longest := filepath.Join(pluginhost.PrivateDir(l.runDir(newID())), "plugin0123456789"); len(longest) > maxSocketPathBytes {
		return layout{}, core.Errorf(core.Invalid, "open data folder: %s is too long: the sockets in it would have paths of %d bytes, %d are possible", dir, len(longest), maxSocketPathBytes).Hint(
			"Set data_dir to a shorter path.")
	}
	for _, d := range []string{l.hive, l.handles, l.run, l.states} {
		if err := disk.MakeFolder(d); err != nil {
			return layout{}, core.Wrap(err, core.Internal, "open data folder")
		}
		// Existing folders may be open to others. The group of the run folder may be that of the
		// plugins' users, which pass through it to their own.
		mode := os.FileMode(0o700)
		if info, err := os.Stat(d); err == nil && d == l.run {
			mode |= info.Mode().Perm() & 0o010
		}
		if err := os.Chmod(d, mode); err != nil {
			return layout{}, core.Wrap(err, core.Internal, "open data folder")
		}
	}
	return l, nil
}

func (l layout) runDir(worker string) string     { return filepath.Join(l.run, worker) }
func (l layout) logFile(worker string) string    { return filepath.Join(l.run, worker, "worker.log") }
func (l layout) handleFile(worker string) string { return filepath.Join(l.handles, worker+".json") }

// newID returns a name for a worker: 12 hexadecimal digits.
func newID() string { return randomHex(6) }

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// validID reports whether a name from outside has the form that newID produces.
func validID(id string) bool {
	if len(id) != 12 {
		return false
	}
	return !strings.ContainsFunc(id, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'f') })
}

// nextIncarnation counts the starts of the agent on this data folder. If the count was lost it
// continues from the time, which is higher than any count.
func (l layout) nextIncarnation(now time.Time) (uint64, error) {
	path := filepath.Join(l.hive, "incarnation")
	b, err := os.ReadFile(path)
	n, parseErr := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 63)
	switch {
	case err == nil && parseErr == nil:
		n++
	case err == nil, errors.Is(err, os.ErrNotExist):
		n = uint64(max(now.Unix(), 1))
	default:
		return 0, core.Wrap(err, core.Internal, "count starts")
	}
	return n, writeFile(path, []byte(strconv.FormatUint(n, 10)+"\n"))
}

// ownID returns the hive's id as kept on disk; the first call creates it.
func (l layout) ownID() (string, error) {
	path := filepath.Join(l.hive, "id")
	b, err := os.ReadFile(path)
	if id := string(bytes.TrimSpace(b)); err == nil && validID(id) {
		return id, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", core.Wrap(err, core.Internal, "read the hive's id")
	}
	if err == nil {
		return "", core.Errorf(core.Integrity, "read the hive's id: %s is damaged", path).Hint(
			"Restore it, or remove it to let the hive register as a new one.")
	}
	id := newID()
	return id, writeFile(path, []byte(id+"\n"))
}

// writeFile replaces a file atomically and durably.
func writeFile(path string, content []byte) error {
	return core.Wrap(disk.Replace(path, content, 0o600), core.Internal, "write state")
}

// removeFile removes a file durably. A missing file is not an error.
func removeFile(path string) error {
	return core.Wrap(disk.Remove(path), core.Internal, "remove state")
}

func writeJSON(path string, v any) error {
	b, err := disk.Seal(v)
	if err != nil {
		return core.Wrap(err, core.Internal, "write state")
	}
	return writeFile(path, b)
}
