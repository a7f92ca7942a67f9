package pluginhost

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/rbee-project/rbee/core"
)

// launchError explains why the operating system did not start an executable.
func launchError(name, path string, err error) error {
	const op = opLaunch
	switch {
	case errors.Is(err, syscall.ENOEXEC):
		return core.Errorf(core.Unsupported, "%s: %s: %s is no executable for this machine: %w", op, name, path, err).Hint("Install the plugin that was built for %s/%s.", runtime.GOOS, runtime.GOARCH)
	case errors.Is(err, syscall.ETXTBSY):
		return core.Errorf(core.Unavailable, "%s: %s: %s is being written: %w", op, name, path, err).Hint("Try again when it is complete.")
	case errors.Is(err, fs.ErrPermission):
		return core.Errorf(core.Forbidden, "%s: %s: %s may not be executed: %w", op, name, path, err).Hint("Make it executable (chmod u+x), and see that its file system is not mounted noexec.")
	case errors.Is(err, fs.ErrNotExist):
		// The file existed a moment ago, so its interpreter is missing.
		return core.Errorf(core.Unsupported, "%s: %s: what %s needs to run is missing: %w", op, name, path, err).Hint("Install the interpreter or the dynamic loader that it names.")
	}
	return core.Errorf(core.Internal, "%s: %s: %w", op, name, err)
}

// startError explains why a started process is not a usable plugin. The process has exited.
func (h *Host) startError(p *process, err error, late bool, out *outputs) error {
	const op = opLaunch
	first := p.run.stdout.firstLine()
	tail := p.tail(out.logFile, out.logStart)
	version, isPlugin := handshakeVersion(first)
	wrong, hint, spoken := h.protocolProblem(version)
	kind := core.Unavailable
	switch {
	case isPlugin && !spoken:
		kind = core.Unsupported
	case first != "" && !isPlugin:
		kind = core.Unsupported
		wrong = fmt.Sprintf("is no rbee plugin: it printed %q", cut(first, 200))
		hint = "Remove it from the plugin folder, or replace it by the plugin itself."
	case late:
		wrong = fmt.Sprintf("did not answer within %s and was ended", h.o.StartTimeout)
		hint = "See what it waits for, and try again; a plugin must answer before it loads anything."
	case isPlugin:
		wrong = fmt.Sprintf("cannot be talked to: %s", err)
		hint = "Report this to the author of the plugin."
	default:
		wrong = fmt.Sprintf("ended at once (%s)", p.run.exitSaid())
		hint = "See what it says above; a missing shared library is the most frequent reason."
		if len(tail) == 0 {
			hint = "It said nothing. Check that it is an rbee plugin for this machine."
		}
	}
	msg := fmt.Sprintf("%s (%s) %s", p.name, filepath.Base(p.run.cmd.Path), wrong)
	if len(tail) > 0 {
		msg += "; it said:\n  " + strings.Join(tail, "\n  ")
	}
	return core.WithHint(core.Wrap(errors.New(msg), kind, op), "%s", hint)
}

// handshakeVersion reads go-plugin's first line: core version|protocol version|network|address|…
func handshakeVersion(line string) (int, bool) {
	parts := strings.Split(line, "|")
	if len(parts) < 4 {
		return 0, false
	}
	v, err := strconv.Atoi(parts[1])
	return v, err == nil
}

// tail returns the last lines that the process wrote, formatted.
func (p *process) tail(logFile string, from int64) []string {
	if p.run.logs != nil {
		return p.run.logs.last()
	}
	if logFile != "" {
		return logTail(logFile, from)
	}
	return nil
}

func cut(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "…"
	}
	return s
}
