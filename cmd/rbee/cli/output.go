package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/rbee-project/rbee/core"
)

// The values of --format.
const (
	formatTable = "table"
	formatJSON  = "json"
)

// output is stdout. It remembers the first error of writing, which fails the command whatever
// wrote. It is not safe for concurrent use.
type output struct {
	to     io.Writer
	closed bool // it was closed before this program began
	err    error
}

func (o *output) Write(b []byte) (int, error) {
	if o.err != nil {
		return 0, o.err
	}
	if o.closed {
		o.err = core.Errorf(core.Internal, "write to stdout: it is closed")
		return 0, o.err
	}
	n, err := o.to.Write(b)
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		err = path.Err
	}
	o.err = core.Wrap(err, core.Internal, "write to stdout")
	return n, o.err
}

// writeJSON writes v as the CLI shows JSON everywhere: indented, with a newline at the end.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// show writes v as JSON, or calls text, whichever the user asked for.
func (a *app) show(v any, text func(w io.Writer) error) error {
	if a.wantJSON() {
		return writeJSON(a.stdout, v)
	}
	return text(a.stdout)
}

// list is a slice for JSON: never null.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// table is rows of text in aligned columns.
type table struct {
	header []string
	rows   [][]string
	empty  string // said instead of a table without rows
}

func newTable(empty string, header ...string) *table {
	return &table{header: header, empty: empty}
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// write aligns and writes the table. Control characters in cells are replaced: names come from
// other machines.
func (t *table) write(w io.Writer) error {
	if len(t.rows) == 0 {
		_, err := fmt.Fprintln(w, t.empty)
		return err
	}
	var sb strings.Builder
	tw := tabwriter.NewWriter(&sb, 0, 0, 2, ' ', 0)
	for _, row := range slices.Concat([][]string{t.header}, t.rows) {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			cell = cleanLine(cell)
			if cell == "" {
				cell = "-"
			}
			fmt.Fprint(tw, cell)
		}
		fmt.Fprintln(tw)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(w, sb.String())
	return err
}

// facts is a list of names and values, one a line, for a single thing. Empty values are left out.
type facts struct{ rows [][2]string }

func (f *facts) add(name, value string) {
	if value != "" {
		f.rows = append(f.rows, [2]string{name, value})
	}
}

func (f *facts) addf(name, format string, args ...any) { f.add(name, fmt.Sprintf(format, args...)) }

func (f *facts) write(w io.Writer) error {
	width := 0
	for _, r := range f.rows {
		width = max(width, utf8.RuneCountInString(r[0]))
	}
	for _, r := range f.rows {
		for i, line := range strings.Split(r[1], "\n") {
			name := r[0]
			if i > 0 {
				name = ""
			}
			if _, err := fmt.Fprintf(w, "%-*s  %s\n", width, name, cleanLine(line)); err != nil {
				return err
			}
		}
	}
	return nil
}

// cleanLine makes text from elsewhere fit for one line of a terminal.
func cleanLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// cleanText is cleanLine for text of several lines.
func cleanText(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = cleanLine(strings.ReplaceAll(line, "\t", "    "))
	}
	return strings.Join(lines, "\n")
}

// bytesText is a size for people: "2.8 MiB". Zero is empty: unknown.
func bytesText(n int64) string {
	if n == 0 {
		return ""
	}
	return sizeText(n)
}

// sizeText is bytesText where zero is a size.
func sizeText(n int64) string {
	if n < 0 {
		return "-" + sizeText(-n)
	}
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n), "KMGTPE"
	i := -1
	// 999.95 and more would be shown with four digits before the unit: go on to the next one.
	for v >= 999.95 && i < len(units)-1 || i < 0 {
		v /= 1024
		i++
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}

// countText is a number of parameters or tokens for people: "2.8M", "7.2B".
func countText(n int64) string {
	switch {
	case n == 0:
		return ""
	case n < 1000:
		return fmt.Sprint(n)
	case n < 999_950:
		return fmt.Sprintf("%.1fK", float64(n)/1e3)
	case n < 999_950_000:
		return fmt.Sprintf("%.1fM", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1fB", float64(n)/1e9)
}

// numberText is n, or empty for zero.
func numberText(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// ago is how long before now t was: "5m ago". A zero t is empty.
func (a *app) ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := a.now().Sub(t)
	if d < time.Second {
		return "now"
	}
	return durationText(d) + " ago"
}

// since is the time since t without "ago".
func (a *app) since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return durationText(max(0, a.now().Sub(t)))
}

// durationText shows the two greatest units of d.
func durationText(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d/time.Second))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d/time.Minute), int(d%time.Minute/time.Second))
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d/time.Hour), int(d%time.Hour/time.Minute))
	}
	return fmt.Sprintf("%dd%dh", int(d/(24*time.Hour)), int(d%(24*time.Hour)/time.Hour))
}

// shortDigest cuts a digest to what tells two files apart in a table.
func shortDigest(digest string) string {
	algorithm, hex, ok := strings.Cut(digest, ":")
	if !ok || len(hex) <= 12 {
		return digest
	}
	return algorithm + ":" + hex[:12]
}

// plural is "1 worker", "2 workers".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// inOrder writes sections one after the other and stops at the first that fails.
func inOrder(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// heading writes a line between sections.
func heading(w io.Writer, text string) error {
	_, err := fmt.Fprintf(w, "\n%s\n", text)
	return err
}
