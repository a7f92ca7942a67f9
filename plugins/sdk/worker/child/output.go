package child

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// Bounds of a server's output.
const (
	MaxLineBytes  = 4 << 10 // of one line; the rest is dropped
	TailLines     = 12      // lines kept for Err and LastWords
	maxTailBytes  = 400     // bytes of one such line
	bytesPerSec   = 64 << 10
	burstBytes    = 1 << 20 // allowed burst, for example a model's metadata
	readBufferLen = 64 << 10
)

// output reads a server's output. It never stops reading, so that a server that writes a lot does
// not block, and passes on only what the limits allow.
type output struct {
	r   *os.File
	log func(string)

	allowance float64 // bytes that may still be passed on
	at        time.Time
	skipped   int // lines dropped since the last one passed on

	mu   sync.Mutex // guards below
	last []string
}

func newOutput(r *os.File, log func(string)) *output {
	return &output{r: r, log: log, allowance: burstBytes, at: time.Now()}
}

func (o *output) read() {
	b := bufio.NewReaderSize(o.r, readBufferLen)
	for {
		line, err := b.ReadSlice('\n')
		text := strings.ToValidUTF8(string(line[:min(len(line), MaxLineBytes)]), "�")
		for errors.Is(err, bufio.ErrBufferFull) { // discards the rest of a long line
			_, err = b.ReadSlice('\n')
		}
		if text = strings.TrimRight(text, "\r\n"); strings.TrimSpace(text) != "" {
			o.line(text, time.Now())
		}
		if err != nil {
			o.flush()
			return
		}
	}
}

func (o *output) line(text string, now time.Time) {
	o.mu.Lock()
	cut := text
	if len(cut) > maxTailBytes {
		cut = strings.ToValidUTF8(cut[:maxTailBytes], "") + "…"
	}
	if o.last = append(o.last, cut); len(o.last) > TailLines {
		o.last = o.last[len(o.last)-TailLines:]
	}
	o.mu.Unlock()
	if o.log == nil {
		return
	}
	o.allowance = min(burstBytes, o.allowance+now.Sub(o.at).Seconds()*bytesPerSec)
	o.at = now
	if o.allowance < float64(len(text)) {
		o.skipped++
		return
	}
	o.flush()
	o.allowance -= float64(len(text))
	o.log(text)
}

// flush reports how many lines were dropped.
func (o *output) flush() {
	if o.skipped > 0 && o.log != nil {
		o.log(fmt.Sprintf("%d lines of the server are left out: it writes too fast", o.skipped))
	}
	o.skipped = 0
}

// tail returns the last lines.
func (o *output) tail() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.last...)
}
