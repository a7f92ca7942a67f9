// Command rbee-worker-fake is package fake's worker as a plugin. The environment variable
// FAKE_DEFECT, which no host passes on, breaks it for tests of the conformance suite.
package main

import (
	"context"
	"os"
	"syscall"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest/fake"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

func main() {
	var b worker.Backend = fake.NewWorker(fake.NameOf(sdk.KindWorker, os.Args[0]), sdk.Logger("fake"))
	switch os.Getenv("FAKE_DEFECT") {
	case "tether":
		_ = os.Unsetenv(sdk.EnvTether)
	case "stdout":
		if fd, err := syscall.Dup(1); err == nil { // before the SDK redirects it to standard error
			b = chatty{b, os.NewFile(uintptr(fd), "stdout")}
		}
	case "closed stdout":
		_ = os.Stdout.Close()
	}
	worker.Serve(b)
}

// chatty writes to the process's original standard output, which belongs to the protocol.
type chatty struct {
	worker.Backend
	out *os.File
}

func (c chatty) Status(ctx context.Context) (worker.Status, error) {
	_, _ = c.out.WriteString("status was asked for\n") // an error means that the host has exited
	return c.Backend.Status(ctx)
}
