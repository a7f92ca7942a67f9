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

func main() {
	os.Exit(cli.Main(version, commit, os.Args[1:]))
}
