package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest"
)

// parrotModule returns the example for authors as a module outside the repository, which imports
// only plugins/sdk/…: a worker type in a few lines.
func parrotModule(t testing.TB) string {
	t.Helper()
	source := filepath.Join("..", "..", "..", "contributing", "examples", "worker-go", "main.go")
	text, err := os.ReadFile(source)
	must.NoError(t, err)
	must.LessEq(t, 60, strings.Count(string(text), "\n"))
	return coretest.Module(t, filepath.Join("..", "..", ".."), "example.org/parrot", source)
}

// A module outside the repository that imports only plugins/sdk/… builds a worker type that the
// real agent runs.
func TestWorkerTypeOfAThirdParty(t *testing.T) {
	t.Parallel()
	dir := parrotModule(t)
	goTool := func(args ...string) string {
		cmd := exec.CommandContext(patient(t), "go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOSUMDB=off", "GOWORK=off", "CGO_ENABLED=0")
		r := run(t, cmd)
		must.Eq(t, 0, r.code, must.Sprint(r.stderr))
		return r.stdout
	}

	plugins := t.TempDir()
	goTool("build", "-trimpath", "-tags", "grpcnotrace", "-o", filepath.Join(plugins, "rbee-worker-parrot"), ".")
	modules := strings.Fields(goTool("list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "."))
	slices.Sort(modules)
	modules = slices.Compact(modules)
	t.Logf("%d modules: %s", len(modules), strings.Join(modules, " "))
	for _, m := range modules {
		for _, heavy := range []string{"hashicorp/hcl", "hashicorp/raft", "hashicorp/memberlist", "zclconf", "bbolt", "memdb", "gopsutil", "yzma", "prometheus", "cobra"} {
			must.StrNotContains(t, m, heavy)
		}
	}
	must.LessEq(t, 20, len(modules))

	// Beside the existing plugins, it is used like any of them.
	own, err := filepath.Glob(filepath.Join(binDir(t), "plugins", "rbee-*"))
	must.NoError(t, err)
	for _, p := range own {
		data, err := os.ReadFile(p)
		must.NoError(t, err)
		must.NoError(t, os.WriteFile(filepath.Join(plugins, filepath.Base(p)), data, 0o700))
	}
	a := startAgent(t, agentOptions{store: t.TempDir(), args: []string{"-plugin-dir", plugins}})
	a.spawn("--type", "parrot")
	must.Eq(t, "HELLO PARROT\n", a.must("infer", "--no-stream", "--model", "rbee-tiny", "--max-tokens", "2", "--prompt", "hello parrot"))
}
