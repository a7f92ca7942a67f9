package gobuild_test

import (
	"archive/zip"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/gobuild"
	"github.com/rbee-project/rbee/core/hostinfo"
)

const patience = 30 * time.Second

// site is a folder to build in, with the caches of the user who runs the tests.
type site struct {
	o   gobuild.Options
	out string // where the executable goes

	mu    sync.Mutex // guards below
	lines []string
}

func newSite(t *testing.T, env ...string) *site {
	t.Helper()
	dir := t.TempDir()
	must.NoError(t, os.Mkdir(filepath.Join(dir, "work"), 0o700))
	must.NoError(t, os.Mkdir(filepath.Join(dir, "out"), 0o700))
	return &site{
		o: gobuild.Options{
			WorkDir: filepath.Join(dir, "work"), BuildCache: goEnv(t, "GOCACHE"), Timeout: 3 * time.Minute,
			Environ: func() []string {
				return append([]string{"PATH=" + os.Getenv("PATH"), "GOFLAGS=-broken", "GOPROXY=off", "SECRET=x"}, env...)
			},
		},
		out: filepath.Join(dir, "out", "plugin"),
	}
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "env", name).Output()
	must.NoError(t, err)
	return strings.TrimSpace(string(out))
}

func (s *site) emit(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
}

func (s *site) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

func (s *site) build(t *testing.T, ctx context.Context, source string) error {
	t.Helper()
	src, err := gobuild.ParseSource(source)
	must.NoError(t, err)
	return gobuild.Build(ctx, s.o, src, s.out, s.emit)
}

// nothingLeft checks that no file of a build remains.
func (s *site) nothingLeft(t *testing.T) {
	t.Helper()
	for _, dir := range []string{s.o.WorkDir, filepath.Dir(s.out)} {
		list, err := os.ReadDir(dir)
		must.NoError(t, err)
		must.SliceEmpty(t, list, must.Sprint(dir))
	}
}

// module writes a Go module into a new folder.
func module(t *testing.T, code string) string {
	t.Helper()
	dir := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.org/bee\n\ngo 1.26.0\n"), 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(code), 0o600))
	return dir
}

const hello = "package main\n\nfunc main() { println(\"hello\") }\n"

func runs(t *testing.T, exe, want string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), exe).CombinedOutput()
	must.NoError(t, err)
	must.Eq(t, want, strings.TrimSpace(string(out)))
}

func TestBuildFolder(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	must.NoError(t, s.build(t, t.Context(), module(t, hello)))
	runs(t, s.out, "hello")
	must.StrContains(t, s.said(), "go version go")
	left, err := os.ReadDir(s.o.WorkDir)
	must.NoError(t, err)
	must.SliceEmpty(t, left)
}

func TestBuildModule(t *testing.T) {
	t.Parallel()
	proxy := t.TempDir()
	at := filepath.Join(proxy, "example.org", "bee", "@v")
	must.NoError(t, os.MkdirAll(at, 0o700))
	must.NoError(t, os.WriteFile(filepath.Join(at, "list"), []byte("v1.2.3\n"), 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(at, "v1.2.3.info"), []byte(`{"Version":"v1.2.3"}`), 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(at, "v1.2.3.mod"), []byte("module example.org/bee\n\ngo 1.26.0\n"), 0o600))
	f, err := os.Create(filepath.Join(at, "v1.2.3.zip"))
	must.NoError(t, err)
	z := zip.NewWriter(f)
	for name, text := range map[string]string{"go.mod": "module example.org/bee\n\ngo 1.26.0\n", "cmd/worker/main.go": hello} {
		w, err := z.Create("example.org/bee@v1.2.3/" + name)
		must.NoError(t, err)
		_, err = w.Write([]byte(text))
		must.NoError(t, err)
	}
	must.NoError(t, z.Close())
	must.NoError(t, f.Close())
	s := newSite(t)
	environ := s.o.Environ()
	s.o.Environ = func() []string { return append([]string{"GOPROXY=file://" + proxy, "GOSUMDB=off"}, environ...) }
	err = s.build(t, t.Context(), "example.org/bee/cmd/worker@v1.2.3")
	must.NoError(t, err, must.Sprint(core.HintOf(err)))
	runs(t, s.out, "hello")

	missing := newSite(t)
	missing.o.Environ = s.o.Environ
	err = missing.build(t, t.Context(), "example.org/bee/cmd/worker@v9.9.9")
	must.Eq(t, core.Invalid, core.KindOf(err))
	must.StrContains(t, core.HintOf(err), "v9.9.9")
	missing.nothingLeft(t)
}

func TestBuildFailureLeavesNothing(t *testing.T) {
	t.Parallel()
	library := module(t, "package bee\n")
	for name, c := range map[string]struct {
		source string
		kind   core.Kind
		says   string // in the error or its hint
	}{
		"compile error": {module(t, "package main\n\nfunc main() { undefined() }\n"), core.Invalid, "undefined: undefined"},
		"no program":    {library, core.Invalid, "no main packages"},
		"no module":     {t.TempDir(), core.Invalid, "go.mod"},
		"no folder":     {filepath.Join(t.TempDir(), "none"), core.NotFound, "no folder"},
		"C code":        {module(t, "package main\n\n// int x;\nimport \"C\"\n\nfunc main() {}\n"), core.Invalid, "build constraints exclude"},
		"offline":       {"example.org/bee@v1.0.0", core.Invalid, "GOPROXY=off"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			err := s.build(t, t.Context(), c.source)
			must.Eq(t, c.kind, core.KindOf(err), must.Sprint(err))
			must.StrContains(t, err.Error()+core.HintOf(err), c.says)
			s.nothingLeft(t)
		})
	}
}

func TestNoToolchain(t *testing.T) {
	t.Parallel()
	dir := module(t, hello)
	for name, change := range map[string]func(*gobuild.Options){
		"none in PATH":     func(o *gobuild.Options) { o.Environ = func() []string { return []string{"PATH=/nowhere"} } },
		"no PATH":          func(o *gobuild.Options) { o.Environ = func() []string { return nil } },
		"relative PATH":    func(o *gobuild.Options) { o.Environ = func() []string { return []string{"PATH=."} } },
		"not at its place": func(o *gobuild.Options) { o.Go = "/nowhere/go" },
		"broken":           func(o *gobuild.Options) { o.Go = "/bin/false" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			change(&s.o)
			err := s.build(t, t.Context(), dir)
			must.Eq(t, core.Unsupported, core.KindOf(err))
			must.ErrorContains(t, err, "Go toolchain")
			must.NotEq(t, "", core.HintOf(err))
			s.nothingLeft(t)
		})
	}
}

// fakeGo returns a toolchain that is a shell script in the folder where the build runs.
func fakeGo(t *testing.T, s *site, script string) string {
	t.Helper()
	dir := t.TempDir()
	s.o.Go = filepath.Join(dir, "go")
	must.NoError(t, os.WriteFile(s.o.Go, []byte("#!/bin/sh\nif [ \"$1\" = version ]; then echo go version go0; exit; fi\n"+script), 0o700))
	return dir
}

// The build starts children, one of which leaves its group and its session: cancelling kills all of
// them, and no process of another build.
func TestCancelKillsGroup(t *testing.T) {
	t.Parallel()
	bystander := exec.Command("sleep", "600")
	must.NoError(t, bystander.Start())
	t.Cleanup(func() { _ = bystander.Process.Kill(); _ = bystander.Wait() })
	for name, script := range map[string]string{
		"while it runs":  "sleep 600 & echo $! > pids.new; setsid sleep 600 & echo $! >> pids.new; mv pids.new pids; wait",
		"that lives on":  "sleep 600 & echo $! > pids.new; setsid sleep 600 & echo $! >> pids.new; mv pids.new pids; exit 1",
		"deaf to a term": "trap '' TERM INT HUP; sleep 600 & echo $! > pids.new; mv pids.new pids; while :; do sleep 1; done",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			dir := fakeGo(t, s, script)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() {
				src, err := gobuild.ParseSource(dir)
				if err == nil {
					err = gobuild.Build(ctx, s.o, src, s.out, s.emit)
				}
				done <- err
			}()
			var children []string
			coretest.Eventually(t, patience, func() error {
				b, err := os.ReadFile(filepath.Join(dir, "pids"))
				children = strings.Fields(string(b))
				return err
			})
			if name != "that lives on" {
				cancel()
				must.Eq(t, core.Cancelled, core.KindOf(<-done))
			} else {
				must.Eq(t, core.Invalid, core.KindOf(<-done))
			}
			// The build has returned: none of its processes may remain, not even for a moment.
			for _, text := range children {
				var pid int
				_, err := fmt.Sscan(text, &pid)
				must.NoError(t, err)
				_, err = hostinfo.Identify(pid)
				if err == nil { // killed, but the operating system takes its time
					coretest.Eventually(t, 5*time.Second, func() error {
						if _, err := hostinfo.Identify(pid); err == nil {
							return fmt.Errorf("process %d goes on", pid)
						}
						return nil
					})
				}
			}
			s.nothingLeft(t)
		})
	}
	_, err := hostinfo.Identify(bystander.Process.Pid)
	must.NoError(t, err)
}

func TestLimits(t *testing.T) {
	t.Parallel()
	t.Run("time", func(t *testing.T) {
		t.Parallel()
		s := newSite(t)
		dir := fakeGo(t, s, "sleep 600")
		s.o.Timeout = time.Second
		err := s.build(t, t.Context(), dir)
		must.Eq(t, core.DeadlineExceeded, core.KindOf(err))
		must.StrContains(t, core.HintOf(err), "timeout")
		s.nothingLeft(t)
	})
	t.Run("disk", func(t *testing.T) {
		t.Parallel()
		s := newSite(t)
		dir := fakeGo(t, s, "i=0; while :; do i=$((i+1)); head -c 100000 /dev/zero > $TMPDIR/$i; sleep 0.05; done")
		s.o.MaxDiskBytes = 1 << 20
		err := s.build(t, t.Context(), dir)
		must.Eq(t, core.TooLarge, core.KindOf(err))
		s.nothingLeft(t)
	})
	t.Run("one file", func(t *testing.T) {
		t.Parallel()
		s := newSite(t)
		dir := fakeGo(t, s, "sleep 0.2; head -c 3000000 /dev/zero > $TMPDIR/large; wc -c < $TMPDIR/large; exit 1")
		s.o.MaxDiskBytes = 1 << 20
		err := s.build(t, t.Context(), dir)
		must.Error(t, err)
		must.StrNotContains(t, s.said(), "3000000")
		s.nothingLeft(t)
	})
	t.Run("output", func(t *testing.T) {
		t.Parallel()
		s := newSite(t)
		dir := fakeGo(t, s, `i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done; printf 'esc\033[31mape\n'; head -c 500000 /dev/zero | tr '\0' x; exit 1`)
		err := s.build(t, t.Context(), dir)
		must.Eq(t, core.Invalid, core.KindOf(err))
		said := s.said()
		must.StrContains(t, said, "line 2000")
		must.StrNotContains(t, said, "line 2001")
		must.StrContains(t, said, "more lines")
		must.Less(t, 200_000, len(said))
		must.StrNotContains(t, core.HintOf(err), "\x1b")
		must.Less(t, 100_000, len(core.HintOf(err)))
	})
}

// Of the agent's environment, a build sees only where modules come from.
func TestBuildEnvironment(t *testing.T) {
	t.Parallel()
	s := newSite(t, "GOPRIVATE=example.org", "HTTPS_PROXY=http://proxy", "RBEE_TOKEN=secret", "GOENV=/etc/x", "GOTOOLCHAIN=auto", "LD_PRELOAD=/evil.so", "HOME=/root")
	dir := fakeGo(t, s, "env; exit 1")
	must.Error(t, s.build(t, t.Context(), dir))
	env := map[string]string{}
	for _, line := range s.lines {
		if name, value, ok := strings.Cut(line, "="); ok {
			env[name] = value
		}
	}
	for name, want := range map[string]string{
		"GOPROXY": "off", "GOPRIVATE": "example.org", "HTTPS_PROXY": "http://proxy", "GOENV": "off", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "-modcacherw -tags=grpcnotrace", "CGO_ENABLED": "0",
	} {
		must.Eq(t, want, env[name], must.Sprint(name))
	}
	for _, name := range []string{"SECRET", "RBEE_TOKEN", "LD_PRELOAD"} {
		must.MapNotContainsKey(t, env, name)
	}
	for _, name := range []string{"HOME", "GOPATH", "TMPDIR", "GOMODCACHE"} {
		must.StrHasPrefix(t, s.o.WorkDir, env[name])
	}
}

func TestParseSource(t *testing.T) {
	t.Parallel()
	for text, ok := range map[string]bool{
		"/srv/bee": true, "/srv/../etc": true, "example.org/bee@v1.2.3": true, "example.org/bee/cmd/worker@latest": true, "example.org/b~e/v2@v2.0.0-rc.1+meta": true,
		"": false, "bee": false, "./bee": false, "../bee": false, "-o": false, "-o@v1": false, "--toolexec=/bin/sh@v1": false, "example.org/bee@-o": false, "example.org/bee@v1 -o": false,
		"example.org/../../x@v1": false, "example.org/bee@": false, "@v1": false, "example.org//bee@v1": false, "example.org/bee@v1\n": false, "/srv/\x00bee": false, "file:///srv@v1": false,
		"example.org/-x@v1": true,
	} {
		src, err := gobuild.ParseSource(text)
		must.Eq(t, ok, err == nil, must.Sprintf("%q", text))
		if !ok {
			must.Eq(t, core.Invalid, core.KindOf(err))
			continue
		}
		must.False(t, strings.HasPrefix(src.String(), "-"))
	}
}

func FuzzParseSource(f *testing.F) {
	f.Add("example.org/bee@v1")
	f.Add("-toolexec=x@v1")
	f.Add("/srv/../x")
	f.Fuzz(func(t *testing.T, text string) {
		src, err := gobuild.ParseSource(text)
		if err != nil {
			return
		}
		if s := src.String(); s == "" || s[0] == '-' || strings.ContainsAny(s, "\x00\n") || strings.Contains(s, "/../") {
			t.Fatalf("taken: %q", text)
		}
	})
}
