package term

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func TestSizes(t *testing.T) {
	t.Parallel()
	cases := map[int64]string{0: "0 B", 1: "1 B", 1023: "1023 B", 1024: "1.0 KiB", 2983680: "2.8 MiB", 1<<30 - 1: "1.0 GiB", 1 << 40: "1.0 TiB", 1 << 62: "4.0 EiB", -2048: "-2.0 KiB"}
	for in, want := range cases {
		must.Eq(t, want, Size(in))
	}
	must.Eq(t, "", Bytes(0))
}

func TestCounts(t *testing.T) {
	t.Parallel()
	cases := map[int64]string{0: "", 999: "999", 1500: "1.5K", 999_999: "1.0M", 2755008: "2.8M", 7_241_732_096: "7.2B"}
	for in, want := range cases {
		must.Eq(t, want, Count(in))
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	tb := NewTable("nothing", "A", "LONG NAME", "C")
	var b bytes.Buffer
	must.NoError(t, tb.Write(&b))
	must.Eq(t, "nothing\n", b.String())
	b.Reset()
	tb.Add("1", "", "x")
	tb.Add("22\x1b[2J", "é", "line\nbreak")
	must.NoError(t, tb.Write(&b))
	must.Eq(t, "A       LONG NAME  C\n1       -          x\n22\ufffd[2J  é          line\ufffdbreak\n", b.String())
}

func TestFacts(t *testing.T) {
	t.Parallel()
	f := &Facts{}
	f.Add("A", "1")
	f.Add("Left out", "")
	f.Add("Longer", "x\ny")
	var b bytes.Buffer
	must.NoError(t, f.Write(&b))
	must.Eq(t, "A       1\nLonger  x\n        y\n", b.String())
}

func testMeter(terminal bool) (*Meter, *bytes.Buffer) {
	var b bytes.Buffer
	now := time.Unix(0, 0)
	return NewMeter(&b, terminal, func() time.Time { return now }), &b
}

func TestMeterInAPipe(t *testing.T) {
	t.Parallel()
	m, b := testMeter(false)
	const total = 1000
	for done := int64(0); done <= total; done++ {
		m.Show(core.Progress{Phase: "download x", Done: done, Total: total, Unit: "bytes"})
	}
	m.Show(core.Progress{Phase: "unpack"})
	m.Show(core.Progress{Phase: "unpack", Done: 5}) // nothing new at the same moment
	m.Log("hello\x1b[0m")
	m.Show(core.Progress{Phase: "load", Done: 100, Total: 100, Unit: "percent"})
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
	m := NewMeter(&b, false, func() time.Time { return now })
	for range 60 {
		m.Show(core.Progress{Phase: "fetch", Done: now.Unix() << 20, Unit: "bytes"})
		now = now.Add(time.Second)
	}
	must.Eq(t, "fetch\nfetch: 15.0 MiB\nfetch: 30.0 MiB\nfetch: 45.0 MiB\n", b.String())
}

func TestMeterOnATerminal(t *testing.T) {
	t.Parallel()
	m, b := testMeter(true)
	for done := int64(0); done <= 1000; done += 100 {
		m.Show(core.Progress{Phase: "download x", Done: done, Total: 1000, Unit: "bytes"})
	}
	m.Show(core.Progress{Phase: "load"})
	m.Log("a line")
	m.Close()
	out := b.String()
	must.StrContains(t, out, "download x")
	must.StrContains(t, out, "100%")
	must.StrContains(t, out, "load")
	must.StrContains(t, out, "\r\x1b[Ka line\n") // the line does not follow a bar
	must.Eq(t, 2, strings.Count(out, "\n"))      // the finished bar and the line
}

func TestMeterTakesOddProgress(t *testing.T) {
	t.Parallel()
	for _, terminal := range []bool{false, true} {
		m, b := testMeter(terminal)
		for _, p := range []core.Progress{{}, {Phase: "x", Done: 5, Total: -1}, {Phase: "x", Done: 20, Total: 10}, {Phase: "x", Done: -3, Total: 10}, {Phase: "x", Done: 1, Total: 0}, {Phase: "a\nb", Total: 1 << 62, Done: 1 << 61, Unit: "bytes"}} {
			m.Show(p)
		}
		m.Close()
		must.StrNotContains(t, b.String(), "a\nb")
	}
}
