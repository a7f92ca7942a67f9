package remote

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/disktrace"
)

// C-08: the list of hosts is on disk after each change.
func TestPowerLossHosts(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{Run: func(t *testing.T, dir string, ack func(string)) {
		h, err := openHosts(filepath.Join(dir, "ssh", "hosts.json"))
		must.NoError(t, err)
		for _, name := range []string{"one", "two"} {
			must.NoError(t, h.change(func(list []core.HiveHost) []core.HiveHost { return append(list, core.HiveHost{Name: name}) }))
			ack(name)
		}
	}})
}

// script runs a script as another machine would.
func script(ctx context.Context, t *testing.T, text, in string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", text, "rbee"}, args...)...)
	cmd.Stdin = strings.NewReader(in)
	out, err := cmd.CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
}

// C-08: each step of an installation is on the machine's disk before the next step begins: the
// manifest and the configuration, a build before its name, and the build before the link to it.
func TestPowerLossInstall(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{Run: func(t *testing.T, dir string, ack func(string)) {
		ctx := context.Background() // ends with the traced process
		lib := filepath.Join(dir, "lib")
		part := filepath.Join(lib, ".partial-1")
		script(ctx, t, scriptFolders, "", "077", lib, filepath.Join(dir, "bin"), filepath.Join(dir, "etc"))
		ack("folders")
		script(ctx, t, scriptWrite, "folders\n", filepath.Join(lib, "installed"), "600")
		ack("the manifest")
		script(ctx, t, scriptFolders, "", "077", part, filepath.Join(part, "plugins"))
		for _, name := range []string{"rbee", "plugins/rbee-worker-cpu"} {
			script(ctx, t, scriptWrite, strings.Repeat(name, 1000), filepath.Join(part, name), "755")
		}
		script(ctx, t, scriptPublish, "", part, filepath.Join(lib, "build"))
		ack("a build")
		for range 2 {
			script(ctx, t, scriptLink, "", filepath.Join(lib, "build", "rbee"), filepath.Join(dir, "bin", "rbee"))
			ack("the link")
			script(ctx, t, scriptWrite, "hive {}\n", filepath.Join(dir, "etc", "config.hcl"), "600")
			ack("the configuration")
		}
	}})
}

// If sync accepts no names, everything is flushed.
func TestFlushWithOldSync(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(dir, "sync"), []byte("#!/bin/sh\n[ $# = 0 ] || exit 1\necho all >>"+dir+"/calls\n"), 0o700)) //nolint:gosec // a program
	script(t.Context(), t, "PATH="+dir+":$PATH; "+scriptWrite, "text", filepath.Join(dir, "file"), "600")
	calls, err := os.ReadFile(filepath.Join(dir, "calls"))
	must.NoError(t, err)
	must.Eq(t, "all\nall\n", string(calls))
}
