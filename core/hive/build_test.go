package hive

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/confine"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/gobuild"
	"github.com/rbee-project/rbee/core/hostinfo"
	"github.com/rbee-project/rbee/core/pluginhost"
	jobv1 "github.com/rbee-project/rbee/proto/job/v1"
)

// suiteArg makes the test binary the process that runs the conformance suite.
const suiteArg = "run-suite"

// builds allows a hive to build with a shell script as the toolchain: it copies the file "program"
// of its folder, or the fake worker, to where go would write the executable.
func builds(t *testing.T, script string) func(*Options) {
	t.Helper()
	plugins, err := pluginDir()
	must.NoError(t, err)
	self, err := os.Executable()
	must.NoError(t, err)
	tool := filepath.Join(t.TempDir(), "go")
	must.NoError(t, os.WriteFile(tool, []byte("#!/bin/sh\nif [ \"$1\" = version ]; then echo go version go0; exit; fi\necho compiling\nFAKE="+filepath.Join(plugins, "rbee-worker-fake")+"\n"+script), 0o700))
	return func(o *Options) {
		o.Build = &BuildOptions{Suite: []string{self, suiteArg}, Go: gobuild.Options{Go: tool, Timeout: 2 * time.Minute}}
	}
}

const installFake = "cp $FAKE $GOBIN/bee\n"

// noBuildLeft checks that a build left neither files nor processes.
func (r *rig) noBuildLeft() {
	r.t.Helper()
	for _, name := range entries(r.t, filepath.Join(r.dir, "run")) {
		must.False(r.t, strings.HasPrefix(name, "b"), must.Sprint(name))
	}
	must.Len(r.t, 0, entries(r.t, filepath.Join(r.dir, "store", "partial")))
}

func TestWorkerBuild(t *testing.T) {
	t.Parallel()
	r := run(t, setup{change: builds(t, installFake)})
	result1[core.Model](r, core.Request{Operation: core.OpModelDownload, Model: "tiny"}) // to try the worker with
	j, events := r.follow(r.submit(core.Request{Operation: core.OpWorkerBuild, Source: "example.org/bee@v1.0.0", Type: "bee"}).ID)
	must.Eq(t, core.JobSucceeded, j.State, must.Sprintf("%+v\n%s", j.Error, logs(events)))
	for _, line := range []string{"go version go0", "compiling", "passed: info", "passed: life", "passed: answers"} {
		must.StrContains(t, logs(events), line)
	}
	r.noBuildLeft()
	b, err := r.hive.claims.store.Binary("bee")
	must.NoError(t, err)
	must.Eq(t, "bee@1.2.3", b.ID)
	must.Eq(t, "build:example.org/bee@v1.0.0", b.Source)
	must.Len(t, 1, b.Checks)
	must.Len(t, 1, b.Devices)

	// It is a worker type like any other.
	w := r.spawn("bee")
	text, err := r.ask(t.Context(), w.Worker.ID, "one two")
	must.NoError(t, err)
	must.StrContains(t, text, "one two")
	coretest.Eventually(t, patience, func() error {
		if types := r.queen.hive().WorkerTypes; len(types) != 2 || types[0] != "bee" {
			return fmt.Errorf("the queen knows %v", types)
		}
		return nil
	})
	f := r.failure(core.Request{Operation: core.OpWorkerDownload, Type: "bee", Force: true})
	must.Eq(t, core.Invalid, f.Kind)
	must.StrContains(t, f.Hint, "worker build")
	must.Eq(t, core.InUse, r.failure(core.Request{Operation: core.OpWorkerBinaryDelete, Binary: "bee"}).Kind)

	// Building the same source again gives another revision; the running worker keeps its own.
	again := result1[core.WorkerBinary](r, core.Request{Operation: core.OpWorkerBuild, Source: "example.org/bee@v1.0.1", Type: "bee"})
	must.Eq(t, "bee@1.2.3", again.ID)
	text, err = r.ask(t.Context(), w.Worker.ID, "still here")
	must.NoError(t, err)
	must.StrContains(t, text, "still here")
	r.stop()

	// The next agent finds it, even if it may not build.
	next := run(t, setup{dir: r.dir})
	next.spawn("bee")
	for _, p := range next.processes() {
		result1[core.ExitResult](next, core.Request{Operation: core.OpWorkerProcessDelete, PID: p.PID, Now: true})
	}
	coretest.Eventually(t, patience, func() error { // the devices are probed once more from the same folder
		return next.do(core.Request{Operation: core.OpWorkerBinaryDelete, Binary: "bee"}).Error.Err()
	})
	must.Eq(t, core.NotFound, next.failure(core.Request{Operation: core.OpWorkerSpawn, Type: "bee", Model: "tiny"}).Kind)
}

// The toolchain, and what it runs for a module, sees neither the agent's data nor home folders.
func TestBuildIsConfined(t *testing.T) {
	t.Parallel()
	if problem := confine.Problem(); problem != "" {
		t.Skipf("not tested: %s", problem)
	}
	plugins, err := pluginDir()
	must.NoError(t, err)
	home, err := filepath.EvalSymlinks(t.TempDir())
	must.NoError(t, err)
	key, source := filepath.Join(home, ".ssh", "key"), filepath.Join(home, "src", "bee")
	for _, dir := range []string{filepath.Dir(key), source} {
		must.NoError(t, os.MkdirAll(dir, 0o700))
	}
	must.NoError(t, os.WriteFile(key, []byte("x"), 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(source, "go.mod"), []byte("module bee\n"), 0o600))
	r := run(t, setup{alone: true, change: func(o *Options) {
		builds(t, fmt.Sprintf("cat %s/node-key >/dev/null && echo leaked data\ncat %s >/dev/null && echo leaked home\ncat go.mod\necho x > go.sum || echo source not writable\ncp $FAKE bee\ncp $FAKE $5/\n", o.DataDir, key))(o)
		must.NoError(t, os.WriteFile(filepath.Join(o.DataDir, "node-key"), []byte("x"), 0o600))
		o.Plugins = pluginhost.New(pluginhost.Options{
			PluginDir: plugins, RunDir: filepath.Join(o.DataDir, "run"),
			Walls: pluginhost.Walls{Rules: confine.Rules{o.DataDir: confine.None, o.DataDir + "/store": confine.Read}, Homes: []string{home}},
		})
	}})
	j, events := r.follow(r.submit(core.Request{Operation: core.OpWorkerBuild, Source: source, Type: "bee"}).ID)
	must.Eq(t, core.JobSucceeded, j.State, must.Sprintf("%+v\n%s", j.Error, logs(events)))
	must.StrNotContains(t, logs(events), "leaked")
	must.StrContains(t, logs(events), "module bee")
	must.StrContains(t, logs(events), "source not writable")
}

func TestWorkerBuildIsOffByDefault(t *testing.T) {
	t.Parallel()
	r := run(t, setup{alone: true})
	f := r.failure(core.Request{Operation: core.OpWorkerBuild, Source: "/srv/bee"})
	must.Eq(t, core.Forbidden, f.Kind)
	must.StrContains(t, f.Hint, "build { enabled = true }")
}

func TestFailedWorkerBuildLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script string
		req    core.Request
		kind   core.Kind
		says   string
	}{
		"compiler":       {"echo main.go:3: undefined: bee; exit 1", core.Request{Source: "/"}, core.Invalid, "undefined: bee"},
		"no plugin":      {"cp /bin/true $GOBIN/bee", core.Request{Source: "a.org/b@v1", Type: "bee"}, core.Unavailable, ""},
		"not conforming": {"printf '#!/bin/sh\\nif [ -e %s/once ]; then exit 1; fi; touch %s/once; exec %s\\n' $(dirname $0) $(dirname $0) $FAKE > $GOBIN/bee; chmod 700 $GOBIN/bee", core.Request{Source: "a.org/b@v1", Type: "bee"}, core.Invalid, "conformance suite"},
		"source":         {installFake, core.Request{Source: "-o", Type: "bee"}, core.Invalid, "source"},
		"type":           {installFake, core.Request{Source: "a.org/b@v1", Type: "../bee"}, core.Invalid, "worker type"},
		"taken by name":  {"exit 1", core.Request{Source: "a.org/cmd/rbee-worker-fake@v1"}, core.Conflict, "--type"},
		"taken type":     {installFake, core.Request{Source: "a.org/b@v1", Type: "fake"}, core.Conflict, "--type"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := run(t, setup{alone: true, change: builds(t, c.script)})
			c.req.Operation = core.OpWorkerBuild
			f := r.failure(c.req)
			must.Eq(t, c.kind, f.Kind, must.Sprint(f.Message))
			must.StrContains(t, f.Message+f.Hint, c.says)
			list, err := r.hive.claims.store.Binaries()
			must.NoError(t, err)
			must.Len(t, 0, list)
			must.Len(t, 1, r.hive.types.all())
			r.noBuildLeft()
		})
	}
}

// What the compiler started ends with the job, including what left its session.
func TestCancelledWorkerBuild(t *testing.T) {
	t.Parallel()
	pids := filepath.Join(t.TempDir(), "pids")
	r := run(t, setup{alone: true, change: builds(t, fmt.Sprintf("sleep 600 & echo $! > %[1]s.new; setsid sleep 600 & echo $! >> %[1]s.new; mv %[1]s.new %[1]s; wait\n", pids))})
	j := r.submit(core.Request{Operation: core.OpWorkerBuild, Source: "/"})
	var children []hostinfo.Identity
	coretest.Eventually(t, patience, func() error {
		b, err := os.ReadFile(pids)
		children = nil
		for text := range strings.FieldsSeq(string(b)) {
			var pid int
			if _, err := fmt.Sscan(text, &pid); err != nil {
				return err
			}
			id, err := hostinfo.Identify(pid)
			if err != nil {
				return err
			}
			children = append(children, id)
		}
		return err
	})
	must.Len(t, 2, children)
	_, err := r.jobs.Cancel(t.Context(), &jobv1.CancelRequest{Id: j.ID})
	must.NoError(t, err)
	ended, _ := r.follow(j.ID)
	must.Eq(t, core.JobCancelled, ended.State)
	coretest.Eventually(t, patience, func() error {
		for _, c := range children {
			if c.Alive() {
				return fmt.Errorf("process %d goes on", c.PID)
			}
		}
		return nil
	})
	r.noBuildLeft()
}

// The real toolchain, and a module that imports nothing but the SDK.
func TestWorkerBuildWithTheRealToolchain(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("compiles the SDK")
	}
	env := func(name string) string {
		out, err := exec.CommandContext(t.Context(), "go", "env", name).Output()
		must.NoError(t, err)
		return strings.TrimSpace(string(out))
	}
	dir := coretest.Module(t, "../..", "example.com/stranger", "../pluginhost/testdata/thirdparty/bee/main.go")
	// It completes go.mod. "go mod tidy" would also need what only the tests of dependencies
	// import, which a machine that built rbee may lack.
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", ".")
	list.Dir, list.Env = dir, append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOSUMDB=off", "GOWORK=off")
	out, err := list.CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	r := run(t, setup{alone: true, change: func(o *Options) {
		builds(t, "")(o)
		o.Build.Go = gobuild.Options{BuildCache: env("GOCACHE"), ModuleCache: env("GOMODCACHE"), Timeout: 5 * time.Minute, Environ: func() []string { return []string{"PATH=" + os.Getenv("PATH"), "GOPROXY=off"} }}
	}})
	j := r.submit(core.Request{Operation: core.OpWorkerBuild, Source: dir})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	must.NoError(t, r.hive.jobs.Events(ctx, j.ID, 0, func(core.Event) error { return nil }))
	ended, events := r.follow(j.ID)
	must.Eq(t, core.JobSucceeded, ended.State, must.Sprintf("%+v\n%s", ended.Error, logs(events)))
	b, err := r.hive.claims.store.Binary("bee")
	must.NoError(t, err)
	must.Eq(t, "build:"+dir, b.Source)
}
