package child_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/plugins/sdk/worker/child"
)

// roleEnv makes the test binary act as a server.
const roleEnv = "RBEE_TEST_CHILD_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		play(role)
		return
	}
	os.Exit(m.Run())
}

// play acts as a server that misbehaves. Each role prints "up" once it is ready for the test.
func play(role string) {
	name, argument, _ := strings.Cut(role, "=")
	switch name {
	case "words":
		fmt.Println("loading")
		fmt.Fprintln(os.Stderr, "no such model")
		os.Exit(3)
	case "deaf": // ignores SIGTERM
		signal.Ignore(syscall.SIGTERM)
	case "lossy": // needs a second SIGTERM
		ch := make(chan os.Signal, 2)
		signal.Notify(ch, syscall.SIGTERM)
		fmt.Println("up")
		<-ch
		fmt.Println("first")
		<-ch
		os.Exit(0)
	case "polite":
		ch := make(chan os.Signal, 1)
		signal.Notify(ch, syscall.SIGTERM)
		fmt.Println("up")
		<-ch
		fmt.Println("bye")
		os.Exit(0)
	case "flood":
		n, err := strconv.Atoi(argument)
		if err != nil {
			os.Exit(4)
		}
		line := strings.Repeat("x", 99) + "\n"
		for range n / len(line) {
			fmt.Print(line)
		}
		fmt.Println(strings.Repeat("y", 1<<20))
		fmt.Println("end")
		os.Exit(0)
	case "fork": // leaves a process in its group that keeps the output open
		cmd := exec.Command(os.Args[0]) //nolint:noctx // it is left behind on purpose
		cmd.Env = append(os.Environ(), roleEnv+"=deaf")
		cmd.Stdout = os.Stdout
		if cmd.Start() != nil {
			os.Exit(4)
		}
		fmt.Println("left", cmd.Process.Pid)
		os.Exit(5)
	case "parent": // starts a server and is then killed
		c, err := child.Start(child.Command{Args: []string{os.Args[0]}, Env: append(os.Environ(), roleEnv+"=deaf")})
		if err != nil {
			os.Exit(4)
		}
		fmt.Println("server", c.PID())
		_, _ = io.Copy(io.Discard, os.Stdin) // until the test kills it
	case "env":
		for _, e := range os.Environ() {
			fmt.Println(e)
		}
		os.Exit(0)
	}
	kill := make(chan os.Signal, 1)
	signal.Notify(kill, syscall.SIGUSR1) // no test sends it
	fmt.Println("up")
	<-kill
}

// lines collects a server's output.
type lines struct {
	mu   sync.Mutex // guards below
	list []string
}

func (l *lines) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, line)
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.list...)
}

func (l *lines) await(t *testing.T, want string) {
	t.Helper()
	coretest.Eventually(t, 20*time.Second, func() error {
		for _, line := range l.all() {
			if strings.HasPrefix(line, want) {
				return nil
			}
		}
		return fmt.Errorf("no line %q in %q", want, l.all())
	})
}

func start(t *testing.T, role string) (*child.Child, *lines) {
	t.Helper()
	l := &lines{}
	c, err := child.Start(child.Command{Args: []string{os.Args[0]}, Env: append(os.Environ(), roleEnv+"="+role), Log: l.add})
	must.NoError(t, err)
	t.Cleanup(func() { c.End(context.Background(), 0) }) // the test's context is over
	return c, l
}

func await(t *testing.T, c *child.Child) {
	t.Helper()
	select {
	case <-c.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the server is still there")
	}
}

// gone returns nil if a process has exited, reaped or not.
func gone(pid int) error {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if _, rest, ok := strings.Cut(string(stat), ") "); ok && (rest[0] == 'Z' || rest[0] == 'X') {
		return nil
	}
	return fmt.Errorf("process %d is still there: %s (%w)", pid, stat, err)
}

func TestChildLastWords(t *testing.T) {
	t.Parallel()
	c, l := start(t, "words")
	await(t, c)
	must.ErrorContains(t, c.Err(), "ended by itself (exit code 3); its last words:\n  loading\n  no such model")
	must.Eq(t, []string{"loading", "no such model"}, l.all())
}

func TestChildEnd(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		role  string
		grace time.Duration
		last  string
	}{
		"polite":       {"polite", time.Minute, "bye"},
		"needs two":    {"lossy", 2 * time.Second, "first"},
		"ignores TERM": {"deaf", 200 * time.Millisecond, "up"},
		"no grace":     {"polite", 0, "up"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, l := start(t, tc.role)
			l.await(t, "up")
			c.End(t.Context(), tc.grace)
			await(t, c)
			must.NoError(t, c.Err())
			words := c.LastWords()
			must.Eq(t, tc.last, words[len(words)-1])
			c.End(t.Context(), tc.grace) // a second call is harmless
		})
	}
}

func TestChildEndWithContext(t *testing.T) {
	t.Parallel()
	c, l := start(t, "deaf")
	l.await(t, "up")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c.End(ctx, time.Hour)
	await(t, c)
}

// A server that writes endlessly neither blocks nor fills the log, and its last lines are kept.
func TestChildFlood(t *testing.T) {
	t.Parallel()
	c, l := start(t, "flood=8000000")
	await(t, c)
	total := 0
	for _, line := range l.all() {
		total += len(line)
	}
	must.Less(t, 4<<20, total, must.Sprintf("%d bytes were logged", total))
	must.StrContains(t, strings.Join(l.all(), "\n"), "lines of the server are left out")
	words := c.LastWords()
	must.Eq(t, "end", words[len(words)-1])
	must.Eq(t, child.TailLines, len(words))
	must.Less(t, 500, len(words[len(words)-2]))
}

// A process that a server leaves in its group is killed, and does not delay Done.
func TestChildFork(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("looks into /proc")
	}
	c, l := start(t, "fork")
	await(t, c)
	must.ErrorContains(t, c.Err(), "exit code 5")
	_, text, _ := strings.Cut(l.all()[0], " ")
	pid, err := strconv.Atoi(text)
	must.NoError(t, err)
	coretest.Eventually(t, 20*time.Second, func() error { return gone(pid) })
}

// Killing a worker also kills its server.
func TestChildDiesWithParent(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux ends a child with its parent")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"=parent")
	stdin, err := cmd.StdinPipe()
	must.NoError(t, err)
	t.Cleanup(func() { _ = stdin.Close() })
	out, err := cmd.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, cmd.Start())
	var pid int
	_, err = fmt.Fscanf(out, "server %d\n", &pid)
	must.NoError(t, err)
	must.Error(t, gone(pid))
	must.NoError(t, cmd.Process.Kill())
	must.Error(t, cmd.Wait())
	coretest.Eventually(t, 20*time.Second, func() error { return gone(pid) })
}

func TestChildNothingToStart(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{"nothing": nil, "empty": {""}, "missing": {"/no/such/server"}, "not in PATH": {"no-such-server-anywhere"}} {
		_, err := child.Start(child.Command{Args: args})
		must.Error(t, err, must.Sprint(name))
	}
}

func TestEnviron(t *testing.T) {
	t.Setenv("RBEE_PLUGIN_TETHER", "1")
	t.Setenv("PLUGIN_PROTOCOL_VERSIONS", "1")
	t.Setenv("PLUGIN_UNIX_SOCKET_DIR", "/run/w")
	t.Setenv("RBEE_WORKER_NONCE", "n")
	l := &lines{}
	c, err := child.Start(child.Command{Args: []string{os.Args[0]}, Env: append(child.Environ(), roleEnv+"=env"), Log: l.add})
	must.NoError(t, err)
	await(t, c)
	must.SliceContainsAll(t, keep(l.all(), "RBEE_PLUGIN", "PLUGIN_", "RBEE_WORKER_NONCE"), []string{"PLUGIN_UNIX_SOCKET_DIR=/run/w", "RBEE_WORKER_NONCE=n"})
}

func keep(list []string, prefixes ...string) []string {
	var out []string
	for _, e := range list {
		for _, p := range prefixes {
			if strings.HasPrefix(e, p) {
				out = append(out, e)
			}
		}
	}
	return out
}

func TestFreePort(t *testing.T) {
	t.Parallel()
	port, err := child.FreePort()
	must.NoError(t, err)
	must.Positive(t, port)
}
