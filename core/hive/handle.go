package hive

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/disk"
	"github.com/rbee-project/rbee/core/pluginhost"
)

// handleFormat is the version of the file format of handles.
const handleFormat = 1

// handle is what a later agent needs to know of a worker process to adopt or end it.
type handle struct {
	Format        int                   `json:"format"`
	Attachment    pluginhost.Attachment `json:"attachment"`
	Version       string                `json:"version"` // of the worker plugin
	Binary        string                `json:"binary"`  // id of the worker binary
	Model         string                `json:"model"`
	ModelDigest   string                `json:"model_digest"`
	Device        string                `json:"device"`
	Slots         int                   `json:"slots"`
	ContextTokens int                   `json:"context_tokens"`
	Threads       int                   `json:"threads"`
	CreatedAt     time.Time             `json:"created_at"`
	KeepAlive     string                `json:"keep_alive,omitempty"` // as in core.Request
	Pinned        bool                  `json:"pinned,omitempty"`
	Replica       string                `json:"replica,omitempty"`      // as in core.Worker
	MemoryBytes   int64                 `json:"memory_bytes,omitempty"` // device memory taken; 0: unknown
}

func (h handle) id() string { return h.Attachment.WorkerID }

// parseHandle reads a handle file of the worker of that id. Errors: Integrity.
func parseHandle(id string, content []byte) (handle, error) {
	if err := disk.CheckSeal(content); err != nil {
		return handle{}, core.Wrap(err, core.Integrity, "read handle")
	}
	var h handle
	if err := json.Unmarshal(content, &h); err != nil {
		return handle{}, core.Wrap(err, core.Integrity, "read handle")
	}
	for _, c := range []struct {
		bad  bool
		what string
	}{
		{h.Format != handleFormat, "another format"},
		{!validID(id) || h.id() != id, "another worker's id"},
		{h.Attachment.Process.PID <= 1, "no process"},
		{h.Attachment.Nonce == "", "no nonce"},
		{h.Attachment.Address == "", "no control socket"},
		{h.Attachment.Type == "" || h.Model == "", "no type or model"},
		{h.Slots < 1 || h.ContextTokens < 0 || h.Threads < 0 || h.MemoryBytes < 0, "impossible numbers"},
	} {
		if c.bad {
			return handle{}, core.Errorf(core.Integrity, "read handle: it has %s", c.what)
		}
	}
	return h, nil
}

// readHandles reads all handle files, ordered by worker id. It moves unreadable files aside and
// reports them to damaged.
func (l layout) readHandles(damaged func(file string, err error)) ([]handle, error) {
	entries, err := os.ReadDir(l.handles)
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "read handles")
	}
	var out []handle
	for _, e := range entries {
		path := filepath.Join(l.handles, e.Name())
		if strings.HasPrefix(e.Name(), ".tmp-") { // a write that was cut short
			if err := removeFile(path); err != nil {
				return nil, err
			}
			continue
		}
		content, err := readRegular(path, e)
		var h handle
		if err == nil {
			h, err = parseHandle(strings.TrimSuffix(e.Name(), ".json"), content)
		}
		if err != nil {
			damaged(e.Name(), err)
			if err := l.setAside(e.Name()); err != nil {
				return nil, err
			}
			continue
		}
		// These folders are removed later: never use a path that only the file names.
		h.Attachment.RunDir, h.Attachment.LogFile = l.runDir(h.id()), l.logFile(h.id())
		out = append(out, h)
	}
	slices.SortFunc(out, func(a, b handle) int { return strings.Compare(a.id(), b.id()) })
	return out, nil
}

func readRegular(path string, e os.DirEntry) ([]byte, error) {
	const most = 1 << 20
	info, err := e.Info()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("it is no regular file")
	case info.Size() > most:
		return nil, errors.New("it is too large for a handle")
	}
	return os.ReadFile(path)
}

func (l layout) setAside(name string) error {
	if err := disk.MakeFolder(l.damaged); err != nil {
		return core.Wrap(err, core.Internal, "set handle aside")
	}
	to := filepath.Join(l.damaged, name)
	if err := os.RemoveAll(to); err != nil {
		return core.Wrap(err, core.Internal, "set handle aside")
	}
	return core.Wrap(disk.Rename(filepath.Join(l.handles, name), to), core.Internal, "set handle aside")
}
