// Command rbee-worker-fake is the worker of package fake as a plugin.
package main

import (
	"os"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest/fake"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

func main() {
	worker.Serve(fake.NewWorker(fake.NameOf(sdk.KindWorker, os.Args[0]), sdk.Logger("fake")))
}
