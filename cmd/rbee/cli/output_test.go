package cli

import (
	"bytes"
	"io/fs"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func TestTimes(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	a := &console{now: func() time.Time { return now }}
	cases := map[time.Duration]string{-time.Hour: "now", 0: "now", 1500 * time.Millisecond: "1s ago", 61 * time.Second: "1m1s ago", 90 * time.Minute: "1h30m ago", 49 * time.Hour: "2d1h ago"}
	for in, want := range cases {
		must.Eq(t, want, a.ago(now.Add(-in)))
	}
	must.Eq(t, "", a.ago(time.Time{}))
}

func TestTextWriter(t *testing.T) {
	t.Parallel()
	for _, terminal := range []bool{false, true} {
		var b bytes.Buffer
		w := (&console{stdoutTerminal: terminal}).textWriter(&b)
		w.write("a\x1b]0;title\a\tb\u009b1m")
		must.NoError(t, w.end())
		if terminal {
			must.Eq(t, "a]0;title\tb1m\n", b.String())
		} else {
			must.Eq(t, "a\x1b]0;title\a\tb\u009b1m\n", b.String()) // a pipe gets the model's output unchanged
		}
	}
	var b bytes.Buffer
	w := (&console{}).textWriter(&b)
	must.NoError(t, w.end())
	must.Eq(t, "", b.String()) // no answer, no empty line
	w.write("x\n")
	must.NoError(t, w.end())
	must.Eq(t, "x\n", b.String())
}

// fullDisk accepts no byte.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) {
	return 0, &fs.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.ENOSPC}
}

// A failed write fails the command.
func TestOutputWriteFails(t *testing.T) {
	t.Parallel()
	commands := []string{"--help", "help ls", "ls --help", "version", "--version", "completion bash", "completion zsh", "operations", "config show --dev", "__complete ls --f", "infer --model rbee-tiny --prompt hi", "run rbee-tiny hi"}
	for _, p := range printedJSON() {
		commands = append(commands, p.command, p.command+" --json")
	}
	for _, command := range commands {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			for name, con := range map[string]console{"full": {stdout: fullDisk{}}, "closed": {stdout: &bytes.Buffer{}, stdoutClosed: true}} {
				q := newFakeQueen(t)
				q.addWorker(fakeWorker("w1", "rbee-tiny"))
				home := t.TempDir()
				var stderr bytes.Buffer
				env := map[string]string{"RBEE_ADDR": q.http.URL, "HOME": home}
				con.stdin, con.stderr, con.now = strings.NewReader(""), &stderr, time.Now
				a := testApp(con, func(name string) (string, bool) { v, ok := env[name]; return v, ok })
				a.build = buildOf("", "")
				must.Eq(t, exitFailed, a.run(strings.Fields(command)), must.Sprint(name))
				must.StrContains(t, stderr.String(), "write to stdout: ")
			}
		})
	}
}

// Hints come from where the cause is known: none is made up from the kind of an error.
func TestReportAddsNoHint(t *testing.T) {
	t.Parallel()
	for _, kind := range []core.Kind{core.Internal, core.Invalid, core.NotFound, core.Conflict, core.InUse, core.Unavailable, core.Overloaded, core.TooLarge, core.Integrity, core.Unsupported, core.Unauthenticated, core.Forbidden, core.Cancelled, core.DeadlineExceeded, core.WorkerLost} {
		var stderr bytes.Buffer
		a := testApp(console{stderr: &stderr}, nil)
		must.Eq(t, exitFailed, a.report(nil, nil, core.Errorf(kind, "it broke")))
		must.Eq(t, "rbee: it broke\n", stderr.String())
	}
}
