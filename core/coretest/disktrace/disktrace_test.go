package disktrace_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest/disktrace"
)

// steps returns how a careful program publishes a file, with one step left out.
func steps(without string) disktrace.Scenario {
	return disktrace.Scenario{Run: func(t *testing.T, dir string, ack func(string)) {
		folder := filepath.Join(dir, "folder")
		must.NoError(t, os.Mkdir(folder, 0o700))
		sync := func(path, step string) {
			if step == without {
				return
			}
			f, err := os.Open(path)
			must.NoError(t, err)
			must.NoError(t, f.Sync())
			must.NoError(t, f.Close())
		}
		sync(dir, "the folder's own name")
		f := filepath.Join(folder, "a.tmp")
		must.NoError(t, os.WriteFile(f, []byte("text"), 0o600))
		sync(f, "data")
		must.NoError(t, os.Rename(f, filepath.Join(folder, "a")))
		sync(folder, "name")
		ack("published")
		a, err := os.OpenFile(filepath.Join(folder, "a"), os.O_WRONLY|os.O_APPEND, 0)
		must.NoError(t, err)
		_, err = a.WriteString("more")
		must.NoError(t, err)
		if without != "more data" {
			must.NoError(t, a.Sync())
		}
		must.NoError(t, a.Close())
		ack("written")
		must.NoError(t, os.Remove(filepath.Join(folder, "a")))
		sync(folder, "removal")
		ack("removed")
	}}
}

func TestCareful(t *testing.T) {
	disktrace.Check(t, steps(""))
}

func noticed(t *testing.T, without, want string) {
	t.Helper()
	found := disktrace.Violations(t, steps(without))
	must.SliceNotEmpty(t, found)
	must.StrContains(t, strings.Join(found, "\n"), want)
}

// Check notices each missing step. Each scenario is a separate test, as it runs in a separate
// process.
func TestMissingFolder(t *testing.T) {
	noticed(t, "the folder's own name", "folder was made")
}

func TestMissingData(t *testing.T) {
	noticed(t, "data", "folder/a gets its name before its data are on the disk")
}

func TestMissingName(t *testing.T) { noticed(t, "name", "folder/a was moved here") }

func TestMissingAppend(t *testing.T) { noticed(t, "more data", "data of folder/a") }

func TestMissingRemoval(t *testing.T) { noticed(t, "removal", "folder/a was removed") }

// Programs that the scenario starts are traced as well.
func shell(script string) disktrace.Scenario {
	return disktrace.Scenario{Run: func(t *testing.T, dir string, ack func(string)) {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", script, "sh", dir).CombinedOutput()
		must.NoError(t, err, must.Sprint(string(out)))
		ack("written")
	}}
}

func TestProgram(t *testing.T) {
	disktrace.Check(t, shell(`echo text >"$1/a.new" && sync && mv "$1/a.new" "$1/a" && ln -s a "$1/b" && sync`))
}

func TestCarelessProgram(t *testing.T) {
	found := disktrace.Violations(t, shell(`echo text >"$1/a.new" && mv "$1/a.new" "$1/a" && ln -s a "$1/b"`))
	must.StrContains(t, strings.Join(found, "\n"), "a gets its name before its data are on the disk")
	must.StrContains(t, strings.Join(found, "\n"), "b was made, and its folder is not on the disk")
}

// A folder is published with its whole contents, even if it had a name before that nothing relied
// on.
func TestMissingInnerNames(t *testing.T) {
	s := shell(`mkdir -p "$1/.new/inner" && echo text >"$1/.new/inner/a" && sync "$1/.new/inner/a" "$1/.new" && mv "$1/.new" "$1/folder" && sync "$1"`)
	found := disktrace.Violations(t, s)
	must.StrContains(t, strings.Join(found, "\n"), "folder folder/inner gets its name before the names in it are on the disk")
	must.StrContains(t, strings.Join(found, "\n"), "folder/inner/a was made, and its folder is not on the disk")
}
