// Package term formats output for people: tables, facts, sizes and times as text, and the progress
// of jobs. It replaces control characters in text from other machines.
package term

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"
)

// Table prints rows of text in aligned columns.
type Table struct {
	header []string
	rows   [][]string
	empty  string // printed instead of a table without rows
}

// NewTable returns a table; empty is printed instead of one without rows.
func NewTable(empty string, header ...string) *Table {
	return &Table{header: header, empty: empty}
}

// Add adds a row.
func (t *Table) Add(cells ...string) { t.rows = append(t.rows, cells) }

// Write aligns and writes the table. It replaces control characters in cells, as names come from
// other machines.
func (t *Table) Write(w io.Writer) error {
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
			cell = Line(cell)
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

// Facts prints a list of names and values, one a line, that describe a single thing. Empty values
// are omitted.
type Facts struct{ rows [][2]string }

// Add adds a fact, unless it is empty.
func (f *Facts) Add(name, value string) {
	if value != "" {
		f.rows = append(f.rows, [2]string{name, value})
	}
}

// Addf adds a formatted fact.
func (f *Facts) Addf(name, format string, args ...any) { f.Add(name, fmt.Sprintf(format, args...)) }

// Write aligns and writes the facts.
func (f *Facts) Write(w io.Writer) error {
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
			if _, err := fmt.Fprintf(w, "%-*s  %s\n", width, name, Line(line)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Line makes foreign text safe for one line of a terminal.
func Line(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// Text is Line for text of several lines.
func Text(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = Line(strings.ReplaceAll(line, "\t", "    "))
	}
	return strings.Join(lines, "\n")
}

// Bytes formats a size: "2.8 MiB". Zero is empty: unknown.
func Bytes(n int64) string {
	if n == 0 {
		return ""
	}
	return Size(n)
}

// Size is Bytes, but zero is a size.
func Size(n int64) string {
	if n < 0 {
		return "-" + Size(-n)
	}
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n), "KMGTPE"
	i := -1
	// 999.95 and more would need four digits before the unit: use the next unit.
	for v >= 999.95 && i < len(units)-1 || i < 0 {
		v /= 1024
		i++
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}

// Count formats a number of parameters or tokens: "2.8M", "7.2B".
func Count(n int64) string {
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

// Number returns n as text; empty for zero.
func Number(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// Duration shows the two largest units of d.
func Duration(d time.Duration) string {
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

// Digest shortens a digest to what distinguishes two files in a table.
func Digest(digest string) string {
	algorithm, hex, ok := strings.Cut(digest, ":")
	if !ok || len(hex) <= 12 {
		return digest
	}
	return algorithm + ":" + hex[:12]
}

// Plural returns "1 worker", "2 workers".
func Plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// InOrder runs steps one after the other and stops at the first that fails.
func InOrder(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// Heading writes a line between sections.
func Heading(w io.Writer, text string) error {
	_, err := fmt.Fprintf(w, "\n%s\n", text)
	return err
}
