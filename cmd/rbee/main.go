// Command rbee is the agent of a machine and the command line that talks to it, in one binary.
//
// Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted.
package main

import (
	"os"

	"github.com/rbee-project/rbee/cmd/rbee/cli"
)

// These are set at build time: -ldflags "-X main.version=1.2.3 -X main.commit=abc".
var (
	version = ""
	commit  = ""
)

// stdoutFlags is the result of fcntl(1, F_GETFD) before the Go runtime began: a negative errno if
// stdout was closed. The runtime opens /dev/null in its place, so that later code cannot tell. It
// stays 0 in builds without the entry point of entry_linux_*.s.
var stdoutFlags int64

func main() {
	os.Exit(cli.Main(cli.Program{Version: version, Commit: commit, StdoutClosed: stdoutFlags < 0}, os.Args[1:]))
}
