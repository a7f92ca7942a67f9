package pluginhost_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/confine"
	"github.com/rbee-project/rbee/core/pluginhost"
)

// tries launches the probe, which makes each try, and returns the outcomes in one text.
func tries(t *testing.T, h *pluginhost.Host, spec pluginhost.Spec) string {
	t.Helper()
	run := filepath.Join(shortDir(t), "w")
	w, err := h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: spec, RunDir: run})
	must.NoError(t, err)
	t.Cleanup(func() { end(t, w) })
	said, err := os.ReadFile(filepath.Join(pluginhost.PrivateDir(run), "said"))
	must.NoError(t, err)
	return string(said)
}

func joined(list ...string) string { return strings.Join(list, "\n") }

// A plugin sees nothing of a home folder except what its block or its environment names, and has
// its own home.
func TestLaunchHidesHome(t *testing.T) {
	t.Parallel()
	if problem := confine.Problem(); problem != "" {
		t.Skipf("not tested: %s", problem)
	}
	home, err := filepath.EvalSymlinks(shortDir(t))
	must.NoError(t, err)
	must.NoError(t, os.MkdirAll(filepath.Join(home, "venv", "bin"), 0o700))
	must.NoError(t, os.Symlink(filepath.Join(home, "python/bin/python3"), filepath.Join(home, "venv/bin/python3")))
	for _, name := range []string{"venv/bin/serve", "venv/pyvenv.cfg", "venv/lib/x.py", "python/bin/python3", "python/lib/y.py", "python/other", ".ssh/id", ".bashrc", ".config/systemd/user/x.service", "models/x.gguf", "hf/token", "notes"} {
		must.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(home, name)), 0o700))
		must.NoError(t, os.WriteFile(filepath.Join(home, name), []byte("x"), 0o600))
	}
	homes := shortDir(t)
	in := func(name string) string { return filepath.Join(home, name) }
	for _, tc := range []struct {
		name, block string
		env         string
		want        []string
	}{
		{"nothing named", "", "X=1", []string{
			"read " + in(".ssh/id") + ": refused", "read " + in("notes") + ": refused", "read " + in("models/x.gguf") + ": refused",
			"write " + in(".bashrc") + ": refused", "write " + in(".config/systemd/user/x.service") + ": refused", "write " + in("new") + ": refused",
			"env HOME: " + filepath.Join(homes, "worker-probe"),
		}},
		{"folder in the block", fmt.Sprintf("read = [%q]", in("models")), "X=1", []string{
			"read " + in("models/x.gguf") + ": done", "write " + in("models/x.gguf") + ": refused", "read " + in(".ssh/id") + ": refused",
		}},
		{"folder to write", fmt.Sprintf("write = [%q]", in("models")), "X=1", []string{
			"write " + in("models/new") + ": done", "read " + in(".ssh/id") + ": refused",
		}},
		{"the whole home", fmt.Sprintf("read = [%q]", home), "X=1", []string{
			"read " + in("notes") + ": done", "read " + in("models/x.gguf") + ": done", "write " + in("notes") + ": refused",
			"read " + in(".ssh/id") + ": refused", "read " + in(".bashrc") + ": refused",
		}},
		{"a variable", "env = [\"HF_HOME\"]", "HF_HOME=" + in("hf"), []string{
			"read " + in("hf/token") + ": done", "read " + in(".ssh/id") + ": refused",
		}},
		{"a virtual environment", fmt.Sprintf("config {\ntags = { program = %q }\n}", in("venv/bin/serve")), "X=1", []string{
			"read " + in("venv/lib/x.py") + ": done", "read " + in("python/lib/y.py") + ": done", "read " + in("python/other") + ": refused",
		}},
		{"what is the agent's", fmt.Sprintf("read = [%q]", "/etc/hostname"), "X=1", []string{"read /etc/hostname: refused", "write /etc/rbee-probe: refused"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var list []string
			for _, w := range tc.want {
				list = append(list, w[:strings.LastIndex(w, ": ")])
			}
			h := newHost(t, func(o *pluginhost.Options) {
				o.Walls = pluginhost.Walls{
					Rules: confine.Rules{"/": confine.Read, "/dev": confine.Full, "/proc": confine.Full, "/etc/hostname": confine.None}, Homes: []string{home}, HomeDir: homes,
				}
				o.Environ = func() []string { return []string{tc.env, "HOME=" + home, "PROBE=tries:" + joined(list...)} }
			})
			spec, err := h.Spec(load(t, "worker \"probe\" {\n"+tc.block+"\n}").Workers[0])
			must.NoError(t, err)
			spec.Env = append(spec.Env, "PROBE")
			must.Eq(t, joined(tc.want...), tries(t, h, spec))
		})
	}
}

// As root, plugins run as another user, which can reach its own files and those it was given access
// to; signals, calls and reattaching work as before.
func TestLaunchAsAnotherUser(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		t.Skip("not tested: it needs root on Linux")
	}
	data, elsewhere := shortDir(t), shortDir(t)
	secret := filepath.Join(data, "cluster", "key")
	must.NoError(t, os.MkdirAll(filepath.Dir(secret), 0o700))
	must.NoError(t, os.WriteFile(secret, []byte("x"), 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(elsewhere, "file"), []byte("x"), 0o600))
	user := &confine.User{UID: 0x7000_0123, GID: 0x7000_0124, Groups: []uint32{0x7000_0125}}
	host := func(probe string) *pluginhost.Host {
		return newHost(t, func(o *pluginhost.Options) {
			o.RunDir = filepath.Join(data, "run")
			o.Walls = pluginhost.Walls{
				Rules: confine.Rules{"/nowhere": confine.None}, HomeDir: filepath.Join(data, "home"), Roots: []string{data, built},
				User: func(string) *confine.User { return user },
			}
			o.Environ = func() []string { return append(os.Environ(), "PROBE="+probe) }
		})
	}
	home := filepath.Join(data, "home", "worker-probe")
	want := []string{
		"user: 1879048483 1879048484 [1879048485]", "read " + secret + ": refused", "read " + filepath.Join(elsewhere, "file") + ": refused",
		"read /etc/shadow: refused", "signal: refused", "write " + filepath.Join(home, "kept") + ": done", "write " + filepath.Join(data, "x") + ": refused",
	}
	var list []string
	for _, w := range want {
		list = append(list, w[:strings.LastIndex(w, ": ")])
	}
	h := host("tries:" + joined(list...))
	run := filepath.Join(data, "run", "w")
	w, err := h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: probeSpec(t, h), RunDir: run})
	must.NoError(t, err)
	t.Cleanup(func() { end(t, w) })
	said, err := os.ReadFile(filepath.Join(pluginhost.PrivateDir(run), "said"))
	must.NoError(t, err)
	must.Eq(t, joined(want...), string(said))
	must.NoError(t, w.Kill())
	<-w.Done()

	// One that serves, with a model and a log in the agent's folders.
	h = host("")
	model := filepath.Join(data, "store", "blobs", "m.gguf")
	must.NoError(t, os.MkdirAll(filepath.Dir(model), 0o700))
	must.NoError(t, os.WriteFile(model, []byte("GGUF"), 0o600))
	run = filepath.Join(data, "run", "s")
	s, err := h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: fakeSpec(t, h, ""), WorkerID: "w", Nonce: "n-" + data, RunDir: run, LogFile: filepath.Join(run, "log")})
	must.NoError(t, err)
	t.Cleanup(func() { end(t, s) })
	spec := startSpec(t)
	spec.ModelPath = model
	must.NoError(t, s.Start(t.Context(), spec, nil))
	_, err = ask(t.Context(), s, "hello")
	must.NoError(t, err)
	info, err := os.Stat(model)
	must.NoError(t, err)
	must.Eq(t, 0o640, info.Mode().Perm())
	must.NoError(t, s.Close())
	again, err := host("").Reattach(t.Context(), s.Attachment())
	must.NoError(t, err)
	_, err = ask(t.Context(), again, "still there?")
	must.NoError(t, err)
	_, err = again.Stop(t.Context(), 0)
	must.NoError(t, err)
	gone(t, s.PID())
}

// A plugin that its user cannot read runs as root, and this is reported.
func TestLaunchClosedPlugin(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		t.Skip("not tested: it needs root on Linux")
	}
	dir, data, models := shortDir(t), shortDir(t), shortDir(t)
	exe := filepath.Join(dir, "rbee-worker-probe")
	must.NoError(t, os.Link(filepath.Join(built, "rbee-worker-probe"), exe))
	model := filepath.Join(models, "m.gguf")
	must.NoError(t, os.WriteFile(model, []byte("x"), 0o600))
	server := filepath.Join(data, "rbee-worker-openai") // it gets access to what servers keep in the home folder
	must.NoError(t, os.Link(filepath.Join(built, "rbee-worker-probe"), server))
	empty, home := shortDir(t), shortDir(t)
	kept := filepath.Join(home, ".ollama", "models")
	must.NoError(t, os.MkdirAll(kept, 0o755))
	for _, tc := range []struct {
		name, block, executable, problem string
		open                             bool // paths that the block names
		home                             string
	}{
		{"open", "", "", "", false, ""},
		{"closed home", "", server, "", false, empty},
		{"file in a closed home", "", server, home + " is closed to other users", false, home},
		{"executable", "", exe, "worker-probe runs as root, as it needs what only root reads: " + dir + " is closed to other users", false, ""},
		{"folder of the block", fmt.Sprintf("read = [%q]", models), "", models + " is closed to other users", false, ""},
		{"file of the block", fmt.Sprintf("read = [%q]", models), "", model + " cannot be read by other users", true, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.open {
				must.NoError(t, os.Chmod(models, 0o755))
			}
			h := newHost(t, func(o *pluginhost.Options) {
				o.RunDir = filepath.Join(data, "run")
				o.Walls = pluginhost.Walls{
					Rules: confine.Rules{"/nowhere": confine.None}, Roots: []string{data, built},
					User: func(string) *confine.User { return &confine.User{UID: 0x7000_0123, GID: 0x7000_0124} },
				}
				o.Environ = func() []string { return []string{"PROBE=tries:user", "HOME=" + tc.home} }
			})
			spec, err := h.Spec(load(t, "worker \"probe\" {\n"+tc.block+"\n}").Workers[0])
			must.NoError(t, err)
			spec.Env = []string{"PROBE"}
			run := filepath.Join(data, "run", "w"+strings.ReplaceAll(tc.name, " ", ""))
			w, err := h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: spec, Executable: tc.executable, RunDir: run})
			must.NoError(t, err)
			t.Cleanup(func() { end(t, w) })
			said, err := os.ReadFile(filepath.Join(pluginhost.PrivateDir(run), "said"))
			must.NoError(t, err)
			must.StrContains(t, h.Confinement(), tc.problem)
			must.Eq(t, tc.problem == "", strings.HasPrefix(string(said), "user: 1879048483 "), must.Sprint(string(said)))
		})
	}
}
