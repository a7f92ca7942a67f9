package plugintest

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest"
)

// Child runs the suite that Run describes on standard input, prints the results to standard output
// and ends the process. Nothing else may run in the process: the test framework owns the flags and
// the standard output.
func Child() {
	var o Options
	if err := json.NewDecoder(io.LimitReader(os.Stdin, 1<<20)).Decode(&o); err != nil {
		fmt.Fprintln(os.Stderr, "read what to test:", err)
		os.Exit(2)
	}
	testing.Init()
	// A timeout of 0: Run enforces its own.
	if err := flag.CommandLine.Parse([]string{"-test.v=test2json", "-test.timeout=0"}); err != nil {
		fmt.Fprintln(os.Stderr, "prepare the suite:", err)
		os.Exit(2)
	}
	all := func(_, _ string) (bool, error) { return true, nil }
	testing.Main(all, []testing.InternalTest{{Name: "plugin", F: o.suite}}, nil, nil)
}

func (o Options) suite(t *testing.T) {
	if o.Kind == sdk.KindCatalog {
		sdktest.Catalog(t, sdktest.CatalogBinary(o.Executable), sdktest.CatalogOptions{Config: o.Config, Ref: o.Ref, Unsearchable: o.Ref == ""})
		return
	}
	sdktest.Worker(t, sdktest.WorkerBinary(o.Executable), sdktest.WorkerOptions{
		Config: o.Config, EngineDir: o.EngineDir, ModelPath: o.ModelPath, Device: o.Device, NoStart: o.NoStart, Threads: 1,
		// The speed and verbosity of the worker under test are unknown.
		AnyLength: true, LongPrompt: "Tell me a long story. " + strings.Repeat("On and on it goes. ", 60),
	})
}
