package pluginhost

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	maxFirstBytes = 4 << 10   // of standard output, to quote what a non-plugin printed
	maxTailLines  = 10        // of standard error, in the message of a failed launch
	maxTailBytes  = 256 << 10 // read from the end of a log file; crash dumps are long
	maxKeptLines  = 400       // that a pump keeps, for the same reason
	maxLineBytes  = 64 << 10  // longer log lines are cut
	// A pump passes on this much within a second and counts the rest: a plugin must not flood the
	// host's log.
	maxLinesPerSecond, maxBytesPerSecond = 200, 256 << 10
)

// firstBytes is a reader that keeps the first bytes it has read.
type firstBytes struct {
	f *os.File

	mu    sync.Mutex // guards below
	first []byte
}

func (r *firstBytes) Read(b []byte) (int, error) {
	n, err := r.f.Read(b)
	r.mu.Lock()
	r.first = append(r.first, b[:min(n, maxFirstBytes-len(r.first))]...)
	r.mu.Unlock()
	if err != nil {
		_ = r.f.Close() // no further reads
	}
	return n, err
}

func (r *firstBytes) Close() error { return r.f.Close() }

// firstLine returns the first line, without its end.
func (r *firstBytes) firstLine() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	line, _, _ := bytes.Cut(r.first, []byte("\n"))
	return strings.TrimSpace(strings.ToValidUTF8(string(line), "?"))
}

// logPump passes a plugin's log lines to the host's logger and keeps the last ones.
type logPump struct {
	r    *os.File
	log  hclog.Logger
	done chan struct{}

	// These count the current second. Only run uses them.
	second       time.Time
	lines, bytes int
	dropped      int

	mu   sync.Mutex // guards below
	tail []string
}

func newLogPump(r *os.File, log hclog.Logger) *logPump {
	return &logPump{r: r, log: log, done: make(chan struct{})}
}

func (p *logPump) run() {
	defer close(p.done)
	defer p.r.Close()
	br := bufio.NewReaderSize(p.r, maxLineBytes)
	for {
		line, err := br.ReadSlice('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			p.line(bytes.TrimRight(line, "\r\n"))
		}
		for errors.Is(err, bufio.ErrBufferFull) { // skip the rest of a line that is too long
			_, err = br.ReadSlice('\n')
		}
		if err != nil {
			p.sayDropped()
			return // the process exited, or finish gave up
		}
	}
}

// within reports whether a line of this size may still be passed on.
func (p *logPump) within(size int, now time.Time) bool {
	if now.Sub(p.second) >= time.Second {
		p.sayDropped()
		p.second, p.lines, p.bytes = now, 0, 0
	}
	p.lines++
	p.bytes += size
	if p.lines > maxLinesPerSecond || p.bytes > maxBytesPerSecond {
		p.dropped++
		return false
	}
	return true
}

func (p *logPump) sayDropped() {
	if p.dropped > 0 {
		p.log.Warn("the plugin says more than is logged", "dropped_lines", p.dropped)
		p.dropped = 0
	}
}

// finish waits for the last lines; an unrelated process may hold the other end of the pipe.
func (p *logPump) finish(patience time.Duration) {
	_ = p.r.SetReadDeadline(time.Now().Add(patience))
	<-p.done
}

func (p *logPump) line(b []byte) {
	l := parseLogLine(b)
	p.mu.Lock()
	p.tail = append(p.tail, l.text())
	if len(p.tail) > maxKeptLines {
		p.tail = p.tail[1:]
	}
	p.mu.Unlock()
	if !p.within(len(b), time.Now()) {
		return
	}
	log := p.log
	if l.module != "" {
		log = log.With("module", l.module)
	}
	log.Log(l.level, l.message, l.pairs...)
}

func (p *logPump) last() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return lastWords(p.tail)
}

// logLine is one line that a plugin wrote.
type logLine struct {
	level   hclog.Level
	message string
	module  string
	pairs   []any
}

// parseLogLine reads a line of hclog's JSON. Anything else becomes a message of level info, such as
// what a C library prints.
func parseLogLine(b []byte) logLine {
	plain := logLine{level: hclog.Info, message: strings.ToValidUTF8(string(b), "?")}
	if len(b) == 0 || b[0] != '{' {
		return plain
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber() // as a float, 8589934592 would become 8.589934592e+09
	var fields map[string]any
	if dec.Decode(&fields) != nil {
		return plain
	}
	message, ok := fields["@message"].(string)
	if !ok {
		return plain
	}
	l := logLine{message: message, level: hclog.Info}
	if text, ok := fields["@level"].(string); ok {
		if level := hclog.LevelFromString(text); level != hclog.NoLevel {
			l.level = level
		}
	}
	l.module, _ = fields["@module"].(string)
	keys := make([]string, 0, len(fields))
	for k := range fields {
		if !strings.HasPrefix(k, "@") {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		v := fields[k]
		if n, ok := v.(json.Number); ok {
			v = n.String()
		}
		l.pairs = append(l.pairs, k, v)
	}
	return l
}

// text returns the line for display.
func (l logLine) text() string {
	var out strings.Builder
	out.WriteString(l.message)
	for i := 0; i+1 < len(l.pairs); i += 2 {
		value, ok := l.pairs[i+1].(string)
		if !ok {
			b, err := json.Marshal(l.pairs[i+1])
			if err != nil {
				continue
			}
			value = string(b)
		}
		key, _ := l.pairs[i].(string)
		if key == "stack" {
			continue // many lines
		}
		out.WriteString(" " + key + "=" + value)
	}
	return out.String()
}

// logTail returns the last lines of a log file from an offset on, formatted; if the file was
// truncated before the offset, from its start.
func logTail(path string, from int64) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil
	}
	if info.Size() < from {
		from = 0
	}
	start := max(from, info.Size()-maxTailBytes)
	b, err := io.ReadAll(io.NewSectionReader(f, start, maxTailBytes))
	if err != nil {
		return nil
	}
	if start > from { // in the middle of a line
		_, b, _ = bytes.Cut(b, []byte("\n"))
	}
	var lines []string
	for line := range bytes.SplitSeq(b, []byte("\n")) {
		if len(bytes.TrimSpace(line)) > 0 {
			lines = append(lines, parseLogLine(line).text())
		}
	}
	return lastWords(lines)
}

// lastWords returns the end of a process's output. For a crash, these are the lines before the
// dump, and the dump's first lines: the rest rarely helps.
func lastWords(lines []string) []string {
	end := len(lines)
	for i, line := range lines {
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") || (strings.HasPrefix(line, "SIG") && strings.Contains(line, ": ")) {
			end = min(i+2, len(lines))
			break
		}
	}
	return slices.Clone(lines[max(0, end-maxTailLines):end])
}
