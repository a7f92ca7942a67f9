package main

import (
	"log/slog"
	"testing"

	"github.com/rbee-project/rbee/plugins/sdk/sdktest"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// The suite is what "rbee plugin test" runs against the executable.
func TestConformance(t *testing.T) {
	t.Parallel()
	sdktest.Worker(t, sdktest.WorkerInProcess(func() worker.Backend {
		return parrot().Backend(slog.New(slog.DiscardHandler))
	}), sdktest.WorkerOptions{})
}
