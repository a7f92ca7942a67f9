package hive

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pluginhost"
)

// appendTo opens a log as its worker has it.
func appendTo(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, f.Close()) })
	return f
}

func write(t *testing.T, f *os.File, text string) {
	t.Helper()
	_, err := f.WriteString(text)
	must.NoError(t, err)
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must.NoError(t, err)
	return string(b)
}

func TestLogIsRotated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "worker.log")
	w := appendTo(t, path)
	rotate := func(want bool) {
		t.Helper()
		rotated, err := rotateLog(path, 100)
		must.NoError(t, err)
		must.Eq(t, want, rotated)
	}

	// At the bound nothing happens.
	first := strings.Repeat("0123456789abcdefghi\n", 5)
	write(t, w, first)
	rotate(false)
	must.Eq(t, first, content(t, path))
	must.Eq(t, []string{"worker.log"}, entries(t, dir))

	// Above it, however far, the newest part is kept.
	write(t, w, first+"the end\n")
	rotate(true)
	must.Eq(t, "", content(t, path))
	must.Eq(t, (first + "the end\n")[8:], content(t, olderLog(path)))
	must.Eq(t, []string{"worker.log", "worker.log.1"}, entries(t, dir))
	for _, p := range []string{path, olderLog(path)} {
		info, err := os.Lstat(p)
		must.NoError(t, err)
		must.Eq(t, fs.FileMode(0o600), info.Mode())
	}
	rotate(false)

	// The next rotation replaces the older piece, and what a hive killed in the middle of a
	// rotation left.
	must.NoError(t, os.WriteFile(olderLog(path)+".new", bytes.Repeat([]byte("x"), 1000), 0o600))
	second := strings.ToUpper(first)
	write(t, w, second+"!")
	rotate(true)
	must.Eq(t, second[1:]+"!", content(t, olderLog(path)))
	must.Eq(t, []string{"worker.log", "worker.log.1"}, entries(t, dir))
}

// Lines written while a log is copied are not lost.
func TestRotationKeepsLinesWrittenMeanwhile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "worker.log")
	w := appendTo(t, path)
	write(t, w, "one\ntwo\n")
	log, err := os.OpenFile(path, os.O_RDWR, 0)
	must.NoError(t, err)
	defer log.Close()
	older, err := copyEnd(log, olderLog(path), 100)
	must.NoError(t, err)
	must.Eq(t, "one\ntwo\n", content(t, olderLog(path))) // published before the truncation
	must.Eq(t, "one\ntwo\n", content(t, path))
	write(t, w, "three\n")
	copyErr, truncateErr := moveRest(log, older, 100)
	must.NoError(t, copyErr)
	must.NoError(t, truncateErr)
	must.Eq(t, "one\ntwo\nthree\n", content(t, olderLog(path)))
	must.Eq(t, "", content(t, path))
}

// A process continues at the new start of its log: there is no hole before what it writes.
func TestRotationWriterContinuesAtNewStart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "worker.log")
	cmd := exec.Command("sh", "-c", `while read -r line; do echo "$line" >&2; echo; done`)
	cmd.Stderr = appendTo(t, path)
	in, err := cmd.StdinPipe()
	must.NoError(t, err)
	out, err := cmd.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, cmd.Start())
	say := func(line string) {
		t.Helper()
		_, err := in.Write([]byte(line + "\n"))
		must.NoError(t, err)
		_, err = out.Read(make([]byte, 1)) // it has been written
		must.NoError(t, err)
	}
	say("before the rotation")
	rotated, err := rotateLog(path, 10)
	must.NoError(t, err)
	must.True(t, rotated)
	say("after it")
	must.NoError(t, in.Close())
	must.NoError(t, cmd.Wait())
	must.Eq(t, "after it\n", content(t, path))
	must.Eq(t, " rotation\n", content(t, olderLog(path)))
}

func TestRotationTruncatesWithoutCopy(t *testing.T) {
	t.Parallel()
	for name, obstruct := range map[string]func(t *testing.T, older string){
		"full disk": func(t *testing.T, older string) {
			if _, err := os.Stat("/dev/full"); err != nil {
				t.Skip("there is no /dev/full")
			}
			must.NoError(t, os.Symlink("/dev/full", older+".new"))
		},
		"a folder is in the way": func(t *testing.T, older string) {
			must.NoError(t, os.MkdirAll(filepath.Join(older, "x"), 0o700))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "worker.log")
			w := appendTo(t, path)
			obstruct(t, olderLog(path))
			write(t, w, "more than ten bytes\n")
			rotated, err := rotateLog(path, 10)
			must.ErrorContains(t, err, "was truncated without a whole copy")
			must.True(t, rotated)
			must.Eq(t, "", content(t, path))
			_, err = os.Lstat(olderLog(path) + ".new")
			must.ErrorIs(t, err, fs.ErrNotExist)
			write(t, w, "on\n")
			must.Eq(t, "on\n", content(t, path))
		})
	}
}

// A failure is logged once for each worker, and once more if rotations had succeeded in between.
func TestFailedRotationLoggedOnce(t *testing.T) {
	t.Parallel()
	var said bytes.Buffer
	sv := &supervisor{
		log: hclog.New(&hclog.LoggerOptions{Output: &said}), disk: layout{run: t.TempDir()}, logBytes: 10,
	}
	w := newWorker(handle{Attachment: pluginhost.Attachment{WorkerID: "0123456789ab"}}, nil, core.WorkerReady)
	path := sv.disk.logFile(w.id())
	expect := func(want int) {
		t.Helper()
		sv.boundLog(w)
		must.Eq(t, want, strings.Count(said.String(), "rotate the log of a worker: worker=0123456789ab error="), must.Sprint(said.String()))
	}
	expect(1) // the file is missing
	expect(1)
	must.NoError(t, os.MkdirAll(filepath.Join(olderLog(path), "x"), 0o700))
	log := appendTo(t, path)
	expect(1)
	write(t, log, "more than ten bytes\n")
	expect(1)
	must.Eq(t, "", content(t, path))
	must.NoError(t, os.RemoveAll(olderLog(path)))
	write(t, log, "more than ten bytes\n")
	expect(1)
	must.Eq(t, "ten bytes\n", content(t, olderLog(path)))
	must.NoError(t, os.Remove(path))
	must.NoError(t, os.Mkdir(path, 0o700))
	expect(2)
	must.StrContains(t, said.String(), "no regular file")
}

// The log of a worker that an earlier agent left is bounded by the next one; the worker writes on,
// and leaves nothing when it ends.
func TestLogOfAnAdoptedWorkerIsBounded(t *testing.T) {
	t.Parallel()
	const limit = 4 << 10
	const chatty = `
worker "chatty" {
  plugin = "rbee-worker-fake"
  config {
    print = true
  }
}`
	const line = "printed to standard error\n"
	a := run(t, setup{workers: chatty, keep: true})
	w := a.spawn("chatty")
	path := a.hive.states.disk.logFile(w.Worker.ID)
	for strings.Count(content(t, path), line)*len(line) <= limit {
		_, err := a.ask(t.Context(), w.Worker.ID, strings.Repeat("word ", 10))
		must.NoError(t, err)
	}
	a.stop()

	b := run(t, setup{workers: chatty, dir: a.dir, change: func(o *Options) { o.logBytes = limit }})
	coretest.Eventually(t, patience, func() error {
		info, err := os.Stat(path)
		if err == nil && info.Size() > limit {
			err = fmt.Errorf("it has %d bytes", info.Size())
		}
		return err
	})
	older, err := os.Stat(olderLog(path))
	must.NoError(t, err)
	must.Between(t, limit, older.Size(), 2*limit)

	// The tail spans the rotation.
	resp, err := b.hive.workers.processGet(t.Context(), core.Request{PID: w.PID})
	must.NoError(t, err)
	must.Len(t, tailLines, resp.Log)

	_, err = b.ask(t.Context(), w.Worker.ID, "word word word")
	must.NoError(t, err)
	got := content(t, path)
	must.StrNotContains(t, got, "\x00")
	must.GreaterEq(t, 3, strings.Count(got, line))
	result1[core.ExitResult](b, core.Request{Operation: core.OpWorkerProcessDelete, PID: w.PID})
	b.nothingLeft()
}
