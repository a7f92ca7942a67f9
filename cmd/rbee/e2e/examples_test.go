package e2e

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// The examples for authors are as short as the documentation claims, and pass the conformance
// suite.
func TestExamples(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs(filepath.Join("..", "..", ".."))
	must.NoError(t, err)
	examples := filepath.Join(root, "contributing", "examples")
	suite := func(t *testing.T, plugin string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(patient(t), filepath.Join(binDir(t), "rbee"), append([]string{"plugin", "test", plugin}, args...)...)
		r := run(t, cmd)
		must.Eq(t, 0, r.code, must.Sprint(r.stdout, r.stderr))
		must.StrContains(t, r.stdout, " 0 failed, 0 skipped.")
	}
	short := func(t *testing.T, file string, most int) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(examples, file))
		must.NoError(t, err)
		must.LessEq(t, most, strings.Count(string(text), "\n"))
	}
	for example, x := range map[string]struct {
		plugin string
		lines  int
		args   []string
	}{
		"worker-go":  {"rbee-worker-parrot", 60, nil},
		"catalog-go": {"rbee-catalog-shelf", 40, []string{"--ref", "hello"}},
	} {
		t.Run(example, func(t *testing.T) {
			t.Parallel()
			short(t, example+"/main.go", x.lines)
			plugin := filepath.Join(t.TempDir(), x.plugin)
			cmd := exec.CommandContext(patient(t), "go", "build", "-trimpath", "-tags", "grpcnotrace", "-o", plugin, ".")
			cmd.Dir = filepath.Join(examples, example)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			r := run(t, cmd)
			must.Eq(t, 0, r.code, must.Sprint(r.stderr))
			suite(t, plugin, x.args...)
		})
	}
	t.Run("worker-python", func(t *testing.T) {
		t.Parallel()
		short(t, "worker-python/rbee-worker-parrot", 200)
		const need = "apt-get install python3-grpcio python3-protobuf protobuf-compiler libprotobuf-dev"
		if r := run(t, exec.CommandContext(patient(t), "/bin/sh", "-c", `/usr/bin/python3 -c "import grpc, google.protobuf" && command -v protoc && ls /usr/include/google/protobuf/duration.proto`)); r.code != 0 {
			t.Skipf("not tested: %s (%s)", need, strings.TrimSpace(r.stderr))
		}
		plugin := filepath.Join(shortDir(t), "rbee-worker-parrot")
		must.NoError(t, os.Mkdir(plugin, 0o755))
		text, err := os.ReadFile(filepath.Join(examples, "worker-python", "rbee-worker-parrot"))
		must.NoError(t, err)
		must.NoError(t, os.WriteFile(filepath.Join(plugin, "rbee-worker-parrot"), text, 0o755))
		r := run(t, exec.CommandContext(patient(t), "protoc", "-I", filepath.Join(root, "proto"), "--python_out="+plugin, "plugin/v1/plugin.proto", "worker/v1/worker.proto"))
		must.Eq(t, 0, r.code, must.Sprint(r.stderr))
		must.NoError(t, filepath.WalkDir(plugin, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			return errors.Join(err, os.Chmod(path, info.Mode().Perm()&^0o022))
		}))
		suite(t, plugin)
	})
}
