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

func TestSizes(t *testing.T) {
	t.Parallel()
	cases := map[int64]string{0: "0 B", 1: "1 B", 1023: "1023 B", 1024: "1.0 KiB", 2983680: "2.8 MiB", 1<<30 - 1: "1.0 GiB", 1 << 40: "1.0 TiB", 1 << 62: "4.0 EiB", -2048: "-2.0 KiB"}
	for in, want := range cases {
		must.Eq(t, want, sizeText(in))
	}
	must.Eq(t, "", bytesText(0))
}

func TestCounts(t *testing.T) {
	t.Parallel()
	cases := map[int64]string{0: "", 999: "999", 1500: "1.5K", 999_999: "1.0M", 2755008: "2.8M", 7_241_732_096: "7.2B"}
	for in, want := range cases {
		must.Eq(t, want, countText(in))
	}
}

func TestTimes(t *testing.T) {
	t.Parallel()
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	a := &app{now: func() time.Time { return now }}
	cases := map[time.Duration]string{-time.Hour: "now", 0: "now", 1500 * time.Millisecond: "1s ago", 61 * time.Second: "1m1s ago", 90 * time.Minute: "1h30m ago", 49 * time.Hour: "2d1h ago"}
	for in, want := range cases {
		must.Eq(t, want, a.ago(now.Add(-in)))
	}
	must.Eq(t, "", a.ago(time.Time{}))
}

func TestTable(t *testing.T) {
	t.Parallel()
	tb := newTable("nothing", "A", "LONG NAME", "C")
	var b bytes.Buffer
	must.NoError(t, tb.write(&b))
	must.Eq(t, "nothing\n", b.String())
	b.Reset()
	tb.add("1", "", "x")
	tb.add("22\x1b[2J", "é", "line\nbreak")
	must.NoError(t, tb.write(&b))
	must.Eq(t, "A       LONG NAME  C\n1       -          x\n22\ufffd[2J  é          line\ufffdbreak\n", b.String())
}

func TestFacts(t *testing.T) {
	t.Parallel()
	f := &facts{}
	f.add("A", "1")
	f.add("Left out", "")
	f.add("Longer", "x\ny")
	var b bytes.Buffer
	must.NoError(t, f.write(&b))
	must.Eq(t, "A       1\nLonger  x\n        y\n", b.String())
}

func TestTextWriter(t *testing.T) {
	t.Parallel()
	for _, terminal := range []bool{false, true} {
		var b bytes.Buffer
		w := (&app{stdoutTerminal: terminal}).textWriter(&b)
		w.write("a\x1b]0;title\a\tb\u009b1m")
		must.NoError(t, w.end())
		if terminal {
			must.Eq(t, "a]0;title\tb1m\n", b.String())
		} else {
			must.Eq(t, "a\x1b]0;title\a\tb\u009b1m\n", b.String()) // a pipe gets what the model said
		}
	}
	var b bytes.Buffer
	w := (&app{}).textWriter(&b)
	must.NoError(t, w.end())
	must.Eq(t, "", b.String()) // no answer, no empty line
	w.write("x\n")
	must.NoError(t, w.end())
	must.Eq(t, "x\n", b.String())
}

func testMeter(terminal bool) (*meter, *bytes.Buffer) {
	var b bytes.Buffer
	now := time.Unix(0, 0)
	a := &app{stderr: &b, stderrTerminal: terminal, now: func() time.Time { return now }}
	return a.newMeter(), &b
}

func TestMeterInAPipe(t *testing.T) {
	t.Parallel()
	m, b := testMeter(false)
	const total = 1000
	for done := int64(0); done <= total; done++ {
		m.show(core.Progress{Phase: "download x", Done: done, Total: total, Unit: "bytes"})
	}
	m.show(core.Progress{Phase: "unpack"})
	m.show(core.Progress{Phase: "unpack", Done: 5}) // nothing new to say at the same moment
	m.log("hello\x1b[0m")
	m.show(core.Progress{Phase: "load", Done: 100, Total: 100, Unit: "percent"})
	must.Eq(t, `download x: 0% of 1000 B
download x: 25% of 1000 B
download x: 50% of 1000 B
download x: 75% of 1000 B
download x: 100% of 1000 B
unpack
`+"hello\ufffd[0m\n"+`load: 100%
`, b.String())
}

func TestMeterRepeatsLongPhases(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	now := time.Unix(0, 0)
	a := &app{stderr: &b, now: func() time.Time { return now }}
	m := a.newMeter()
	for range 60 {
		m.show(core.Progress{Phase: "fetch", Done: now.Unix() << 20, Unit: "bytes"})
		now = now.Add(time.Second)
	}
	must.Eq(t, "fetch\nfetch: 15.0 MiB\nfetch: 30.0 MiB\nfetch: 45.0 MiB\n", b.String())
}

func TestMeterOnATerminal(t *testing.T) {
	t.Parallel()
	m, b := testMeter(true)
	for done := int64(0); done <= 1000; done += 100 {
		m.show(core.Progress{Phase: "download x", Done: done, Total: 1000, Unit: "bytes"})
	}
	m.show(core.Progress{Phase: "load"})
	m.log("a line")
	m.close()
	out := b.String()
	must.StrContains(t, out, "download x")
	must.StrContains(t, out, "100%")
	must.StrContains(t, out, "load")
	must.StrContains(t, out, "\r\x1b[Ka line\n") // the line does not stand behind a bar
	must.Eq(t, 2, strings.Count(out, "\n"))      // the finished bar and the line
}

func TestMeterTakesOddProgress(t *testing.T) {
	t.Parallel()
	for _, terminal := range []bool{false, true} {
		m, b := testMeter(terminal)
		for _, p := range []core.Progress{{}, {Phase: "x", Done: 5, Total: -1}, {Phase: "x", Done: 20, Total: 10}, {Phase: "x", Done: -3, Total: 10}, {Phase: "x", Done: 1, Total: 0}, {Phase: "a\nb", Total: 1 << 62, Done: 1 << 61, Unit: "bytes"}} {
			m.show(p)
		}
		m.close()
		must.StrNotContains(t, b.String(), "a\nb")
	}
}

// fullDisk takes no byte.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) {
	return 0, &fs.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.ENOSPC}
}

// A failed write fails the command.
func TestOutputThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	commands := []string{"--help", "help ls", "ls --help", "version", "--version", "completion bash", "completion zsh", "operations", "config show --dev", "__complete ls --f", "infer --model rbee-tiny --prompt hi", "run rbee-tiny hi"}
	for _, p := range printedJSON() {
		commands = append(commands, p.command, p.command+" --json")
	}
	for _, command := range commands {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			for name, a := range map[string]*app{"full": {stdout: fullDisk{}}, "closed": {stdout: &bytes.Buffer{}, stdoutClosed: true}} {
				q := newFakeQueen(t)
				q.addWorker(fakeWorker("w1", "rbee-tiny"))
				home := t.TempDir()
				var stderr bytes.Buffer
				env := map[string]string{"RBEE_ADDR": q.http.URL, "HOME": home}
				a.stdin, a.stderr, a.now, a.build = strings.NewReader(""), &stderr, time.Now, buildOf("", "")
				a.env = func(name string) (string, bool) { v, ok := env[name]; return v, ok }
				must.Eq(t, exitFailed, a.run(strings.Fields(command)), must.Sprint(name))
				must.StrContains(t, stderr.String(), "write to stdout: ")
			}
		})
	}
}

// A hint is of the one who knows the cause: none is made up from the kind of an error.
func TestReportAddsNoHint(t *testing.T) {
	t.Parallel()
	for _, kind := range []core.Kind{core.Internal, core.Invalid, core.NotFound, core.Conflict, core.InUse, core.Unavailable, core.Overloaded, core.TooLarge, core.Integrity, core.Unsupported, core.Unauthenticated, core.Forbidden, core.Cancelled, core.DeadlineExceeded, core.WorkerLost} {
		var stderr bytes.Buffer
		a := &app{stderr: &stderr}
		must.Eq(t, exitFailed, a.report(nil, nil, core.Errorf(kind, "it broke")))
		must.Eq(t, "rbee: it broke\n", stderr.String())
	}
}
