package term

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/rbee-project/rbee/core"
)

// Meter shows the progress of a job on stderr: a bar on a terminal, otherwise a line at the start
// of a phase, at each quarter and at its end. It is not safe for concurrent use.
type Meter struct {
	w        io.Writer
	terminal bool
	Quiet    bool // nothing is shown
	now      func() time.Time

	phases  map[string]*phase
	current *phase // the one whose bar is on the screen
}

// phase is the progress of one phase of a job, and what has been shown of it.
type phase struct {
	name    string
	bar     *progressbar.ProgressBar
	total   int64
	quarter int // the last one shown as a line
	shownAt time.Time
	ended   bool
}

// plainInterval is the time between two lines of a phase with an unknown total.
const plainInterval = 15 * time.Second

// NewMeter returns a meter that writes to w: a bar if that is a terminal.
func NewMeter(w io.Writer, terminal bool, now func() time.Time) *Meter {
	return &Meter{w: w, terminal: terminal, now: now, phases: make(map[string]*phase)}
}

// Show shows one progress event.
func (m *Meter) Show(p core.Progress) {
	if m.Quiet {
		return
	}
	// Total may become known later than the phase, and a retried download may start again.
	ph, known := m.phases[p.Phase]
	if !known || (ph.ended && p.Done < p.Total) {
		ph = &phase{name: Line(p.Phase), quarter: -1}
		m.phases[p.Phase] = ph
	}
	done := min(p.Done, max(p.Total, 0))
	if p.Total <= 0 {
		done = p.Done
	}
	if m.terminal {
		m.showBar(ph, p, done)
	} else {
		m.showLine(ph, p, done)
	}
	ph.total = p.Total
	ph.ended = p.Total > 0 && done >= p.Total
}

func (m *Meter) showBar(ph *phase, p core.Progress, done int64) {
	if ph.ended {
		return
	}
	if m.current != ph {
		m.leave()
		m.current = ph
	}
	if ph.bar == nil || ph.total != p.Total {
		m.stop(ph)
		ph.bar = m.newBar(ph.name, p)
	}
	_ = ph.bar.Set64(done)
	if p.Total > 0 && done >= p.Total {
		_ = ph.bar.Finish()
		fmt.Fprintln(m.w)
		m.current = nil
	}
}

func (m *Meter) newBar(name string, p core.Progress) *progressbar.ProgressBar {
	total := p.Total
	if total <= 0 {
		total = -1
	}
	return progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(m.w),
		progressbar.OptionSetDescription(name),
		progressbar.OptionShowBytes(p.Unit == "bytes"),
		progressbar.OptionShowTotalBytes(p.Unit == "bytes"),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetWidth(30),
		progressbar.OptionSetPredictTime(p.Unit == "bytes"),
		progressbar.OptionThrottle(65*time.Millisecond),
		progressbar.OptionUseANSICodes(true),
		progressbar.OptionSetRenderBlankState(true),
		// The bar is rendered only at events, without a goroutine that outlives the Meter.
		progressbar.OptionSetSpinnerChangeInterval(0),
		progressbar.OptionSpinnerType(14),
	)
}

// leave removes the bar of an unfinished phase from the screen, so that another one or a line can
// be shown.
func (m *Meter) leave() {
	if m.current == nil {
		return
	}
	fmt.Fprint(m.w, "\r\x1b[K")
	m.current = nil
}

func (m *Meter) stop(ph *phase) {
	if ph.bar != nil {
		_ = ph.bar.Exit()
	}
}

func (m *Meter) showLine(ph *phase, p core.Progress, done int64) {
	now := m.now()
	if p.Total <= 0 {
		if ph.quarter >= 0 && now.Sub(ph.shownAt) < plainInterval {
			return
		}
		ph.quarter, ph.shownAt = 0, now
		m.line(ph.name, Amount(done, p.Unit))
		return
	}
	quarter := int(done * 4 / p.Total)
	if quarter <= ph.quarter {
		return
	}
	ph.quarter = quarter
	text := fmt.Sprintf("%d%%", done*100/p.Total)
	if p.Unit == "bytes" {
		text += " of " + Size(p.Total)
	}
	m.line(ph.name, text)
}

func (m *Meter) line(name, text string) {
	if text == "" {
		fmt.Fprintln(m.w, name)
		return
	}
	fmt.Fprintf(m.w, "%s: %s\n", name, text)
}

// Amount formats how much is done when the total is unknown.
func Amount(done int64, unit string) string {
	switch {
	case done == 0:
		return ""
	case unit == "bytes":
		return Size(done)
	case unit == "percent":
		return fmt.Sprintf("%d%%", done)
	}
	return fmt.Sprint(done)
}

// Log shows a log line of the job.
func (m *Meter) Log(message string) {
	if m.Quiet {
		return
	}
	m.leave()
	fmt.Fprintln(m.w, Text(strings.TrimRight(message, "\n")))
}

// Close removes an unfinished bar from the screen. The Meter can be used again.
func (m *Meter) Close() {
	m.leave()
	for _, ph := range m.phases {
		m.stop(ph)
	}
	clear(m.phases)
}
