package scaffold_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/scaffold"
)

// goTool runs the go command in a module, without a network.
func goTool(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod -trimpath -tags=grpcnotrace", "GOPROXY=off", "GOSUMDB=off", "GOWORK=off", "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	must.NoError(t, err, must.Sprintf("go %s: %s", strings.Join(args, " "), out))
}

// A module written beside a checkout of the SDK builds without a network, and passes the
// conformance suite in its own test.
func TestWrittenModulesPass(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds two modules")
	}
	for _, kind := range []string{"worker", "catalog"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r, err := scaffold.Write(scaffold.Options{Kind: kind, Name: "mine", Dir: filepath.Join(t.TempDir(), "a folder"), SDK: "../.."})
			must.NoError(t, err)
			must.True(t, r.Complete)
			must.Eq(t, "rbee-"+kind+"-mine", r.Executable)
			must.Eq(t, []string{".gitignore", "README.md", "go.mod", "go.sum", "main.go", "main_test.go"}, r.Files)
			goTool(t, r.Dir, "test", ".")
			for _, name := range r.Files {
				text, err := os.ReadFile(filepath.Join(r.Dir, name))
				must.NoError(t, err)
				must.StrNotContains(t, string(text), "@NAME@")
			}
		})
	}
}

// Without a checkout, the module names the SDK's version, for "go mod tidy".
func TestWriteWithVersion(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "x")
	r, err := scaffold.Write(scaffold.Options{Kind: "worker", Name: "mine", Dir: dir, Path: "example.com/me/mine", SDK: "v1.2.3"})
	must.NoError(t, err)
	must.False(t, r.Complete)
	text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	must.NoError(t, err)
	must.StrHasPrefix(t, "module example.com/me/mine\n", string(text))
	must.StrContains(t, string(text), "require github.com/rbee-project/rbee v1.2.3\n")
}

func TestWriteRefuses(t *testing.T) {
	t.Parallel()
	full := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(full, "x"), nil, 0o600))
	for name, tc := range map[string]struct {
		o    scaffold.Options
		kind core.Kind
	}{
		"kind":        {scaffold.Options{Kind: "queen", Name: "x", SDK: "v1.0.0"}, core.Invalid},
		"name":        {scaffold.Options{Kind: "worker", Name: "../x", SDK: "v1.0.0"}, core.Invalid},
		"module":      {scaffold.Options{Kind: "worker", Name: "x", Path: "a b", SDK: "v1.0.0"}, core.Invalid},
		"version":     {scaffold.Options{Kind: "worker", Name: "x", SDK: "no such\nversion"}, core.NotFound},
		"no checkout": {scaffold.Options{Kind: "worker", Name: "x", SDK: full}, core.NotFound},
		"full folder": {scaffold.Options{Kind: "worker", Name: "x", SDK: "v1.0.0", Dir: full}, core.Conflict},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.o.Dir == "" {
				tc.o.Dir = filepath.Join(t.TempDir(), "new")
			}
			_, err := scaffold.Write(tc.o)
			must.Eq(t, tc.kind, core.KindOf(err), must.Sprint(err))
			_, err = os.Stat(filepath.Join(full, "go.mod"))
			must.ErrorIs(t, err, os.ErrNotExist)
		})
	}
}
