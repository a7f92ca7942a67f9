// Command rbee is the whole of rbee in one binary: the agent of a machine and the command line that
// talks to it.
//
// Exit codes: 0 it worked, 1 it failed, 2 it was called wrongly, 130 it was interrupted.
package main

import (
	"os"

	"github.com/rbee-project/rbee/cmd/rbee/cli"
)

// Set at build time: -ldflags "-X main.version=1.2.3 -X main.commit=abc".
var (
	version = ""
	commit  = ""
)

// stdoutFlags is what fcntl(1, F_GETFD) answered before the Go runtime began: a negative errno
// where stdout was closed. The runtime opens /dev/null in its place, so that nothing after it can
// tell. It stays 0 in builds without the entry point of entry_linux_*.s.
var stdoutFlags int64

func main() {
	os.Exit(cli.Main(cli.Program{Version: version, Commit: commit, StdoutClosed: stdoutFlags < 0}, os.Args[1:]))
}
