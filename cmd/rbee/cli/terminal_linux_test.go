package cli

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// onTerminal runs "rbee args" with its own terminal as stdin, stdout and stderr. keys are what a
// person types; screen is what they see.
func onTerminal(t *testing.T, addr string, args ...string) (r *running, keys *os.File, screen *buffer) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	master := os.NewFile(uintptr(fd), "ptmx")
	must.NoError(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	must.NoError(t, err)
	must.NoError(t, unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100}))
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	must.NoError(t, err)
	defer slave.Close()

	dir := t.TempDir()
	r = &running{cmd: exec.Command("rbee", args...), exited: make(chan struct{})}
	r.cmd.Env = append(ownEnviron(dir), "TERM=xterm", "RBEE_ADDR="+addr)
	r.cmd.Stdin, r.cmd.Stdout, r.cmd.Stderr = slave, slave, slave
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	screen = &buffer{}
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = master.Close()
		<-done
	})
	r.begin(t)
	go func() {
		defer close(done)
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			_, _ = screen.Write(b[:n])
			if err != nil {
				return
			}
		}
	}()
	return r, master, screen
}

func TestChatOnATerminal(t *testing.T) {
	t.Parallel()
	q := newFakeQueen(t)
	q.addWorker(fakeWorker("w1", "rbee-tiny"))
	r, keys, screen := onTerminal(t, q.http.URL, "run", "rbee-tiny")
	typed := func(s string) {
		t.Helper()
		_, err := keys.WriteString(s)
		must.NoError(t, err)
	}
	see := func(want string) {
		t.Helper()
		eventually(t, contains(screen.String, want))
	}
	see("Talking with rbee-tiny")
	see(">>> ")
	typed("hellp\x7fo\r") // deletes a wrong letter
	see("1: hello")
	typed("\x1b[A again\r") // the last line, with something appended
	see("3: hello again")

	// ^C stops the answer instead of the program, and the part received stays in the conversation.
	typed("forever\r")
	see("on on on ")
	typed("\x03")
	see("(stopped)")
	eventually(t, contains(func() string { return screen.String()[strings.Index(screen.String(), "(stopped)"):] }, ">>> "))
	typed("still there?\r")
	see("7: still there?")

	// ^C at the prompt drops the line.
	typed("never sent\x03")
	see("(/bye or ^D ends)")
	typed("/clear\r")
	see("The conversation is forgotten.")
	typed("\x1b[200~two\nlines\x1b[201~\r")
	see("1: two\r\nlines")
	typed("say error\r")
	see("the device is on fire")
	typed("goes on\r")
	see("3: goes on")
	must.StrNotContains(t, screen.String(), "1: never sent")
	typed("\x04")
	must.Eq(t, 0, r.code(t))
}

// What is typed while an answer is generated is kept for the next prompt.
func TestChatKeepsWhatIsTypedBehindInterrupt(t *testing.T) {
	t.Parallel()
	q := newFakeQueen(t)
	q.addWorker(fakeWorker("w1", "rbee-tiny"))
	r, keys, screen := onTerminal(t, q.http.URL, "chat", "rbee-tiny")
	eventually(t, contains(screen.String, ">>> "))
	_, err := keys.WriteString("dropped\x03kept\r")
	must.NoError(t, err)
	eventually(t, contains(screen.String, "1: kept"))
	_, err = keys.WriteString("/bye\r")
	must.NoError(t, err)
	must.Eq(t, 0, r.code(t))
}

func TestProgressAndQuestionsOnATerminal(t *testing.T) {
	t.Parallel()
	q := newFakeQueen(t)
	r, _, screen := onTerminal(t, q.http.URL, "infer", "--model", "rbee-tiny", "--prompt", "hello")
	must.Eq(t, 0, r.code(t), must.Sprint(screen.String()))
	eventually(t, contains(screen.String, "1: hello"))
	must.StrContains(t, screen.String(), "download llama.cpp")
	must.StrContains(t, screen.String(), "100%")
	must.StrContains(t, screen.String(), "engine llama.cpp v0.5.0 installed")

	// Enter answers no.
	r, keys, screen := onTerminal(t, q.http.URL, "stop", "rbee-tiny")
	eventually(t, contains(screen.String, "Retire worker w1 (rbee-tiny, 1 running request)? [y/N]"))
	_, err := keys.WriteString("\r")
	must.NoError(t, err)
	must.Eq(t, 1, r.code(t))
	eventually(t, contains(screen.String, "nothing was done"))
	must.Len(t, 1, q.State().Workers)

	r, keys, screen = onTerminal(t, q.http.URL, "stop", "w1")
	eventually(t, contains(screen.String, "[y/N]"))
	_, err = keys.WriteString("y\r")
	must.NoError(t, err)
	must.Eq(t, 0, r.code(t))
	eventually(t, contains(screen.String, "Worker w1 ended"))

	// ^C at the question.
	q.addWorker(fakeWorker("w2", "rbee-tiny"))
	r, keys, screen = onTerminal(t, q.http.URL, "stop", "w2")
	eventually(t, contains(screen.String, "[y/N]"))
	_, err = keys.WriteString("\x03")
	must.NoError(t, err)
	must.Eq(t, 130, r.code(t))
}

// top draws until ^C, on the alternate screen, no wider and no higher than the terminal.
func TestTopOnATerminal(t *testing.T) {
	t.Parallel()
	q := newFakeQueen(t)
	for i := range 40 {
		q.addWorker(fakeWorker("w"+strconv.Itoa(i), "rbee-tiny"))
	}
	r, keys, screen := onTerminal(t, q.http.URL, "top", "--interval", "100ms")
	eventually(t, contains(screen.String, "40 requests running, 80 waiting, 160 slots, 4936 tokens/s"))
	must.StrHasPrefix(t, screenBegin, screen.String())
	q.addWorker(fakeWorker("another", "rbee-tiny"))
	eventually(t, contains(screen.String, "41 requests running"))
	must.StrContains(t, screen.String(), "more lines")
	for picture := range strings.SplitSeq(screen.String(), screenHome) {
		const ended = "\x1b[K\r\n" // as the terminal receives it
		must.LessEq(t, 23, strings.Count(picture, ended))
		for l := range strings.SplitSeq(picture, ended) {
			must.LessEq(t, 100+len(screenRest)+len(screenBegin), len([]rune(l)))
		}
	}
	// A queen that does not answer does not end it.
	q.http.CloseClientConnections()
	_, err := keys.WriteString("\x03")
	must.NoError(t, err)
	must.Eq(t, 0, r.code(t))
	eventually(t, contains(screen.String, screenEnd))
}
