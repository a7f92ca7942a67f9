package gobuild

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	maxLines     = 2000     // lines of the toolchain's output to pass on
	maxBytes     = 1 << 20  // bytes of it
	maxLineBytes = 2 << 10  // longer lines are cut
	maxReadLine  = 64 << 10 // longer lines are broken
	maxTail      = 20       // lines in the message of a failed build
	pipePatience = time.Second
)

// group runs a command as the leader of a process group, and returns when the whole group has
// exited. When ctx ends, it kills the group at once.
func (b *build) group(ctx context.Context, cmd *exec.Cmd, said *output) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	start := b.o.Start
	if start == nil {
		start = (*exec.Cmd).Start
	}
	err = start(cmd)
	_ = w.Close()
	if err != nil {
		return err
	}
	limit(cmd.Process.Pid, b.o.MaxDiskBytes)
	var wg sync.WaitGroup
	wg.Go(func() { said.read(r) })
	l := &leader{cmd: cmd}
	stopKill := context.AfterFunc(ctx, l.kill)
	err = l.wait()
	stopKill()
	b.leftovers()
	_ = r.SetReadDeadline(time.Now().Add(pipePatience)) // another process may hold the other end
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// leader is the first process of a group. Its PID, which is also the group's ID, is not reused
// until the process is collected.
type leader struct {
	cmd *exec.Cmd

	mu        sync.Mutex // guards below
	collected bool
}

func (l *leader) kill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.collected {
		_ = syscall.Kill(-l.cmd.Process.Pid, syscall.SIGKILL)
	}
}

// wait kills the rest of the group when the process has ended, then returns.
func (l *leader) wait() error {
	if endedUncollected(l.cmd.Process.Pid) {
		l.kill()
		l.mu.Lock()
		l.collected = true
		l.mu.Unlock()
		return l.cmd.Wait()
	}
	err := l.cmd.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.collected = true
	return err
}

// output passes lines on and keeps the last ones.
type output struct {
	emit    func(string)
	lines   int
	bytes   int
	dropped int
	tail    []string
}

func (o *output) read(r io.Reader) {
	br := bufio.NewReaderSize(r, maxReadLine)
	for {
		line, err := br.ReadSlice('\n')
		if text := cleanLine(string(line)); text != "" {
			o.line(text)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func (o *output) line(text string) {
	o.tail = append(o.tail, text)
	o.tail = o.tail[max(len(o.tail)-maxTail, 0):]
	if o.lines >= maxLines || o.bytes+len(text) > maxBytes {
		o.dropped++
		return
	}
	o.lines++
	o.bytes += len(text)
	o.emit(text)
}

// cleanLine shortens a line and removes characters that could control a terminal.
func cleanLine(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case r < ' ' || r == 0x7f:
			return -1
		}
		return r
	}, strings.ToValidUTF8(strings.TrimRight(s, "\r\n"), "\uFFFD"))
	if len(s) > maxLineBytes {
		s = strings.ToValidUTF8(s[:maxLineBytes], "") + "…"
	}
	return strings.TrimRight(s, " ")
}
