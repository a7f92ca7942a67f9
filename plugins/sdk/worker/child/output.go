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
	MaxLineBytes  = 4 << 10 // of one line; the rest of a longer one is left out
	TailLines     = 12      // kept for Err and LastWords
	maxTailBytes  = 400     // of one of those
	bytesPerSec   = 64 << 10
	burstBytes    = 1 << 20 // what a server may write at once, such as the facts of a model
	readBufferLen = 64 << 10
)

// output reads what a server writes. It never stops reading, so that a server that writes much does
// not hang, and passes on no more than the limits allow.
type output struct {
	r   *os.File
	log func(string)

	allowance float64 // bytes that may be passed on now
	at        time.Time
	skipped   int // lines since the last one that was passed on

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
		for errors.Is(err, bufio.ErrBufferFull) { // the rest of a long line
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

// flush says how many lines were left out.
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
