package job

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/disk"
)

const (
	logSuffix = ".log"
	// maxLogBytes is the size at which a job's file is rewritten with only the kept events; later
	// events are appended again.
	maxLogBytes = 2 << 20
	// maxReadBytes bounds how much of a file is read, and maxLineBytes one line, which holds at
	// most one result.
	maxReadBytes = 64 << 20
	maxLineBytes = maxResultBytes + 64<<10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is the first line of a job's file. It omits the request itself, which may be confidential.
type header struct {
	ID        string         `json:"id"`
	Operation core.Operation `json:"operation"`
	RequestID string         `json:"request_id,omitempty"`
	At        int64          `json:"at"` // nanoseconds since 1970
}

// appendLine appends v as a line that starts with a checksum.
func appendLine(b []byte, v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return b, core.Wrap(err, core.Internal, "encode an event")
	}
	b = fmt.Appendf(b, "%08x ", crc32.Checksum(data, castagnoli))
	return append(append(b, data...), '\n'), nil
}

// readLine decodes a line that appendLine wrote, without its newline.
func readLine(line []byte, v any) bool {
	if len(line) < 9 || line[8] != ' ' {
		return false
	}
	sum, err := strconv.ParseUint(string(line[:8]), 16, 32)
	if err != nil || uint32(sum) != crc32.Checksum(line[9:], castagnoli) {
		return false
	}
	dec := json.NewDecoder(bytes.NewReader(line[9:]))
	return dec.Decode(v) == nil
}

// readLog reads a job's file. It ignores everything after the last whole line, such as a torn write
// after a loss of power: good is the length of the valid part. Errors: Integrity if even the first
// line is torn, Internal.
func readLog(r io.Reader) (h header, events []core.Event, good int64, err error) {
	in := bufio.NewScanner(io.LimitReader(r, maxReadBytes))
	in.Buffer(nil, maxLineBytes)
	in.Split(func(data []byte, _ bool) (int, []byte, error) { // whole lines only
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			return i + 1, data[:i], nil
		}
		return 0, nil, nil
	})
	if !in.Scan() || !readLine(in.Bytes(), &h) {
		if err := in.Err(); err != nil && !errors.Is(err, bufio.ErrTooLong) {
			return h, nil, 0, core.Wrap(err, core.Internal, "read a job")
		}
		return h, nil, 0, core.Errorf(core.Integrity, "read a job: its file has no whole first line")
	}
	good = int64(len(in.Bytes())) + 1
	for in.Scan() {
		var e core.Event
		if !readLine(in.Bytes(), &e) || !follows(events, e) {
			break
		}
		events = append(events, e)
		good += int64(len(in.Bytes())) + 1
	}
	return h, events, good, nil
}

// follows reports whether an event can follow the earlier ones.
func follows(before []core.Event, e core.Event) bool {
	var last core.Event
	if len(before) > 0 {
		last = before[len(before)-1]
	}
	if e.Seq <= last.Seq || last.Kind == core.EventEnd {
		return false
	}
	switch e.Kind {
	case core.EventProgress:
		return e.Progress != nil
	case core.EventLog, core.EventResult:
		return true
	case core.EventEnd:
		return e.State == core.JobSucceeded || e.State == core.JobFailed || e.State == core.JobCancelled
	}
	return false
}

// logFile is the file of one job. Only one goroutine uses it.
type logFile struct {
	path string
	h    header
	f    *os.File
	size int64
}

// createLog creates the file of a new job.
func createLog(dir string, h header) (*logFile, error) {
	l := &logFile{path: filepath.Join(dir, h.ID+logSuffix), h: h}
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "keep a job")
	}
	l.f = f
	b, err := appendLine(nil, h)
	if err == nil {
		err = l.write(b)
	}
	if err != nil {
		f.Close()
		_ = disk.Remove(l.path)
		return nil, err
	}
	return l, nil
}

func (l *logFile) write(b []byte) error {
	n, err := l.f.Write(b)
	l.size += int64(n)
	return core.Wrap(err, core.Internal, "keep a job")
}

// add appends events. If they end the job, add flushes them, so that they survive a loss of power;
// otherwise they survive only the end of the agent. kept returns all events to keep, in case the
// file has grown too long.
func (l *logFile) add(events []core.Event, kept func() []core.Event) error {
	var b []byte
	ended := false
	for _, e := range events {
		var err error
		if b, err = appendLine(b, e); err != nil {
			return err
		}
		ended = ended || e.Kind == core.EventEnd
	}
	var err error
	if l.size+int64(len(b)) > maxLogBytes {
		err = l.renew(append(kept(), events...))
	} else {
		err = l.write(b)
	}
	if err == nil && ended {
		err = l.sync()
	}
	return err
}

// sync flushes the file and its directory entry to disk.
func (l *logFile) sync() error {
	err := l.f.Sync()
	if err == nil {
		err = disk.SyncFolder(filepath.Dir(l.path))
	}
	return core.Wrap(err, core.Internal, "keep a job")
}

// renew replaces the file with one that holds these events.
func (l *logFile) renew(events []core.Event) error {
	b, err := appendLine(nil, l.h)
	for _, e := range events {
		if err == nil {
			b, err = appendLine(b, e)
		}
	}
	if err != nil {
		return err
	}
	f, err := os.OpenFile(l.path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return core.Wrap(err, core.Internal, "keep a job")
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(l.path+".new", l.path)
	}
	if err != nil {
		f.Close()
		_ = os.Remove(l.path + ".new") // a partial file would keep a full disk full
		return core.Wrap(err, core.Internal, "keep a job")
	}
	l.f.Close()
	l.f, l.size = f, int64(len(b))
	return nil
}

func (l *logFile) close() {
	if l.f != nil {
		l.f.Close()
	}
}

// readEvents reads the events of a job's file.
func readEvents(path string) ([]core.Event, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	_, events, _, err := readLog(f)
	return events, err
}
