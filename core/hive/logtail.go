package hive

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
)

const (
	// tailBytes is how much of the end of a log file is read.
	tailBytes = 64 << 10
	// tailLines is how many lines of a worker's log are shown.
	tailLines = 50
	// failureLines is how many lines of a dead worker's log are kept.
	failureLines = 10
	// maxLineBytes is the length at which a shown line is cut.
	maxLineBytes = 2 << 10
)

// tailFile returns at most the last n lines of a log file for display, oldest first. After a recent
// rotation they include the older piece. A missing file has no lines.
func tailFile(path string, n int) ([]string, error) {
	text, whole, err := endOf(path)
	if err == nil && whole {
		var before string
		before, _, err = endOf(olderLog(path))
		text = before + text
	}
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "read worker log")
	}
	return tailText(text, n), nil
}

// endOf returns the end of a file, at most tailBytes of it, and whether that is the whole file. A
// missing file is empty.
func endOf(path string) (text string, whole bool, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", true, nil
	}
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", false, err
	}
	from := max(info.Size()-tailBytes, 0)
	b := make([]byte, info.Size()-from)
	read, err := f.ReadAt(b, from)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", false, err
	}
	text = string(b[:read])
	if from > 0 && read > 0 { // the first line may be torn
		_, text, _ = strings.Cut(text, "\n")
		return text, false, nil
	}
	return text, true, nil // also if the file was truncated after Stat
}

func tailText(text string, n int) []string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	lines = lines[max(len(lines)-n, 0):]
	for i := range lines {
		lines[i] = logLine(lines[i])
	}
	return lines
}

// logLine makes a JSON line of a plugin's logger readable: "2026-11-23T10:00:00Z [WARN] message:
// key=value". It returns any other line unchanged.
func logLine(line string) string {
	var m map[string]any
	if json.Unmarshal([]byte(line), &m) == nil && m["@message"] != nil {
		var b strings.Builder
		if at, ok := m["@timestamp"].(string); ok {
			b.WriteString(at + " ")
		}
		if level, ok := m["@level"].(string); ok {
			b.WriteString("[" + strings.ToUpper(level) + "] ")
		}
		fmt.Fprintf(&b, "%v", m["@message"])
		sep := ": "
		keys := make([]string, 0, len(m))
		for k := range m {
			if !strings.HasPrefix(k, "@") {
				keys = append(keys, k)
			}
		}
		slices.Sort(keys)
		for _, k := range keys {
			fmt.Fprintf(&b, "%s%s=%v", sep, k, m[k])
			sep = " "
		}
		line = b.String()
	}
	line = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' ' // log lines must not control a terminal
		}
		return r
	}, strings.ToValidUTF8(line, "\uFFFD"))
	if len(line) > maxLineBytes {
		line = strings.ToValidUTF8(line[:maxLineBytes], "") + "…"
	}
	return line
}
