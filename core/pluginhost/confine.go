package pluginhost

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core/confine"
)

// Confinement says why plugins reach files that they should not; empty: they do not.
func (h *Host) Confinement() string {
	if h.o.Rules == nil {
		return "confinement is off"
	}
	return confine.Problem()
}

// StartConfined starts cmd, which runs the plugin executable or something that will, under the
// host's rules. It may do everything in its folder dir, which is its folder for temporary files
// where it may not use the system's.
func (h *Host) StartConfined(cmd *exec.Cmd, executable, dir string) error {
	if h.o.Rules == nil || confine.Problem() != "" {
		return cmd.Start()
	}
	rules := h.o.Rules
	if rules.Access(dir) != confine.Full {
		rules = rules.With(dir, confine.Full)
	}
	if folder := filepath.Dir(executable); rules.Access(folder) == confine.None {
		rules = rules.With(folder, confine.Read)
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	temp := os.TempDir()
	if i := slices.IndexFunc(cmd.Env, func(e string) bool { return strings.HasPrefix(e, "TMPDIR=") }); i >= 0 {
		temp = strings.TrimPrefix(cmd.Env[i], "TMPDIR=")
	}
	if !rules.Creates(temp) {
		cmd.Env = append(cmd.Env, "TMPDIR="+dir)
	}
	return confine.Start(cmd, rules)
}
