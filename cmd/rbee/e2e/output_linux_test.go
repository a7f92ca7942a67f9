package e2e

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

// A closed stdout fails a command that has something to print; a discarded one does not, however it
// was opened.
func TestClosedStdout(t *testing.T) {
	t.Parallel()
	for redirect, code := range map[string]int{">&-": 1, ">/dev/full": 1, ">/dev/null": 0, "1<>/dev/null": 0} {
		for _, command := range []string{"version", "version --json", "--help", "ls --help", "completion bash", "operations"} {
			cmd := exec.Command("sh", "-c", "exec "+filepath.Join(binDir(t), "rbee")+" "+command+" "+redirect)
			r := run(t, cmd)
			must.Eq(t, code, r.code, must.Sprint(command, redirect, r.stderr))
			if code != 0 {
				must.StrContains(t, r.stderr, "write to stdout")
			}
		}
	}
}
