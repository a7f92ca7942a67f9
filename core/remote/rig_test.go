package remote

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	gossh "golang.org/x/crypto/ssh"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/sshserver"
)

// fakeProgram is a minimal rbee for installations, in a few lines of shell.
const fakeProgram = `#!/bin/sh
# build %s
case $1 in
--version) echo "rbee %s"; exit 0 ;;
esac
conf=$4
if [ "$1" = agent ]; then conf=$3; fi
data=$(sed -n 's/^data_dir *= *"\(.*\)"$/\1/p' "$conf")
case $1 in
cluster)
  read -r token
  if [ "$token" != "rbeejoin_secret@127.0.0.1:7834" ]; then echo "error: the token is wrong" >&2; exit 1; fi
  mkdir -p "$data/cluster" && echo pem > "$data/cluster/node.pem" && printf feedbeef > "$data/node-id" ;;
agent)
  %s
  trap 'exit 0' TERM
  echo start >> "$data/starts"
  while :; do sleep 0.05; done ;;
esac
`

// rig is a queen's machine with a user's home folder, and another machine behind an SSH server.
type rig struct {
	t       *testing.T
	r       *Remote
	home    string // on the other machine
	cluster *fakeCluster
	run     *fakeRun
	server  *sshserver.Server

	mu   sync.Mutex // guards below
	hook func(sshserver.Command) (status int, done bool)
	seen []string // command lines
}

func newRig(t *testing.T, env ...string) *rig {
	t.Helper()
	home, key := sshserver.Home(t, "")
	g := &rig{t: t, home: filepath.Join(t.TempDir(), "a home"), run: &fakeRun{}}
	must.NoError(t, os.Mkdir(g.home, 0o700))
	shell := sshserver.Shell(g.home, env...)
	g.server = sshserver.Start(t, sshserver.Options{Authorized: []gossh.PublicKey{key}, Run: func(c sshserver.Command) int {
		g.mu.Lock()
		g.seen = append(g.seen, c.Line)
		hook := g.hook
		g.mu.Unlock()
		if hook != nil {
			if status, done := hook(c); done {
				return status
			}
		}
		return shell(c)
	}})
	config := fmt.Sprintf("Host box\n HostName 127.0.0.1\n Port %d\n User someone\n", g.server.Port)
	must.NoError(t, os.WriteFile(filepath.Join(home, ".ssh", "config"), []byte(config), 0o600))
	g.cluster = &fakeCluster{data: filepath.Join(g.home, ".local/share/rbee"), pid: filepath.Join(g.home, ".local/lib/rbee/agent.pid")}
	var err error
	g.r, err = New(Options{Cluster: g.cluster, Name: "desk", Home: home, DataDir: t.TempDir(), Program: g.program("1.0", "a", ""), Patience: 30 * time.Second})
	must.NoError(t, err)
	t.Cleanup(func() {
		if pid := g.cluster.alive(); pid != 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return g
}

// program makes a build: its version, a mark that distinguishes it from others, and shell lines at
// the start of its agent.
func (g *rig) program(version, mark, start string) Program {
	g.t.Helper()
	dir := g.t.TempDir()
	must.NoError(g.t, os.Mkdir(filepath.Join(dir, "plugins"), 0o700))
	must.NoError(g.t, os.WriteFile(filepath.Join(dir, "rbee"), fmt.Appendf(nil, fakeProgram, mark, version, start), 0o700))
	for _, p := range []string{"rbee-worker-cpu", "rbee-catalog-file", "README"} {
		must.NoError(g.t, os.WriteFile(filepath.Join(dir, "plugins", p), []byte("plugin "+p), 0o700))
	}
	return Program{Version: version, Executable: filepath.Join(dir, "rbee"), PluginDir: filepath.Join(dir, "plugins")}
}

func (g *rig) onCommand(hook func(sshserver.Command) (int, bool)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hook = hook
}

func (g *rig) commands() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.seen)
}

func request(op core.Operation) core.Request {
	return core.Request{Operation: op, Host: "box", AcceptNew: true, Service: ServiceNone}
}

func (g *rig) install(change ...func(*core.Request)) (core.InstallResult, error) {
	req := request(core.OpHiveInstall)
	for _, c := range change {
		c(&req)
	}
	return g.r.Install(g.t.Context(), req, g.run)
}

// tree lists the files below the other machine's home folder.
func (g *rig) tree() []string {
	g.t.Helper()
	list := []string{}
	must.NoError(g.t, filepath.WalkDir(g.home, func(p string, _ fs.DirEntry, err error) error {
		if err == nil && p != g.home {
			list = append(list, strings.TrimPrefix(p, g.home+"/"))
		}
		return err
	}))
	return list
}

// fakeRun records what an operation reports.
type fakeRun struct {
	mu     sync.Mutex // guards below
	lines  []string
	phases []string
}

func (f *fakeRun) Progress(p core.Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Contains(f.phases, p.Phase) {
		f.phases = append(f.phases, p.Phase)
	}
}

func (f *fakeRun) Log(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lines = append(f.lines, fmt.Sprintf(format, args...))
}

func (f *fakeRun) text() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.lines, "\n")
}

// fakeCluster is a cluster whose one hive is ready while its agent runs.
type fakeCluster struct {
	data, pid string

	mu       sync.Mutex // guards below
	calls    []string
	workers  []core.Worker
	gone     bool
	stays    bool // the hive may not leave
	mintErr  error
	draining bool
	probing  int // number of further answers before the hive knows its devices
}

func (f *fakeCluster) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

func (f *fakeCluster) called() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fakeCluster) alive() int {
	b, err := os.ReadFile(f.pid)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || syscall.Kill(pid, 0) != nil {
		return 0
	}
	return pid
}

func (f *fakeCluster) JoinToken(_ context.Context, name string, roles []core.Role) (string, string, error) {
	f.note("token for %s: %v", name, roles)
	return "rbeejoin_secret@127.0.0.1:7834", "t1", f.mintErr
}

func (f *fakeCluster) RevokeToken(_ context.Context, id string) (core.Token, error) {
	f.note("revoke %s", id)
	return core.Token{}, nil
}

func (f *fakeCluster) Hive(_ context.Context, hive string) (core.Hive, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b, err := os.ReadFile(filepath.Join(f.data, "starts")); err == nil && (hive == "feedbeef" || hive == "gpu") && !f.gone {
		h := core.Hive{ID: "feedbeef", Name: "gpu", Status: core.HiveDown, Incarnation: uint64(strings.Count(string(b), "\n")), Draining: f.draining}
		if f.alive() != 0 {
			h.Status = core.HiveReady
			if h.Probing = f.probing > 0; !h.Probing {
				h.Devices = []core.Device{{ID: "cpu", Kind: "cpu"}}
			}
			f.probing--
		}
		return h, nil
	}
	return core.Hive{}, core.Errorf(core.NotFound, "there is no hive %q", hive)
}

func (f *fakeCluster) Workers(context.Context) ([]core.Worker, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.workers), nil
}

func (f *fakeCluster) DrainHive(ctx context.Context, hive string, drain bool) (core.Hive, error) {
	f.note("drain %s: %t", hive, drain)
	f.mu.Lock()
	f.draining = drain
	f.mu.Unlock()
	return f.Hive(ctx, hive)
}

func (f *fakeCluster) LeaveNode(_ context.Context, id string) (core.Node, error) {
	f.note("leave %s", id)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stays {
		return core.Node{}, core.Errorf(core.Conflict, "it is the only voting queen")
	}
	f.gone = true
	return core.Node{ID: id}, nil
}

func (f *fakeCluster) Submit(_ context.Context, r core.Request, _ bool) (core.Job, error) {
	f.note("%s %s", r.Operation, r.Worker)
	return core.Job{ID: "job-" + r.Worker, State: core.JobRunning}, nil
}

func (f *fakeCluster) Job(_ context.Context, id string) (core.Job, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.workers = slices.DeleteFunc(f.workers, func(w core.Worker) bool { return "job-"+w.ID == id })
	return core.Job{ID: id, State: core.JobSucceeded}, nil
}

// pathWith returns a PATH whose first folder contains these programs.
func pathWith(t *testing.T, programs map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range programs {
		must.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o700))
	}
	return "PATH=" + dir + ":" + os.Getenv("PATH")
}
