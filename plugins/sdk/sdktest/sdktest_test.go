package sdktest_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest/fake"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

var built string

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if os.Getenv(breakEnv) != "" {
		return m.Run(), nil // these tests need no executables
	}
	dir, err := os.MkdirTemp("", "rbee-sdktest")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	built = dir
	for name, pkg := range map[string]string{"rbee-worker-fake": "./fakeworker", "rbee-catalog-fake": "./fakecatalog"} {
		if err := coretest.Build(filepath.Join(dir, name), pkg); err != nil {
			return 1, err
		}
	}
	return m.Run(), nil
}

func TestFakeWorker(t *testing.T) {
	t.Parallel()
	o := sdktest.WorkerOptions{
		BadConfig:  json.RawMessage(`{"token_delay":"soon"}`),
		LongConfig: json.RawMessage(`{"token_delay":"5ms","tokens":300}`),
	}
	printing := o
	printing.Config = json.RawMessage(`{"print":true}`)
	t.Run("in process", func(t *testing.T) {
		t.Parallel()
		sdktest.Worker(t, sdktest.WorkerInProcess(func() worker.Backend { return fake.NewWorker("fake", hclog.NewNullLogger()) }), o)
	})
	t.Run("binary", func(t *testing.T) {
		t.Parallel()
		sdktest.Worker(t, sdktest.WorkerBinary(filepath.Join(built, "rbee-worker-fake")), printing)
	})
}

func TestFakeCatalog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.gguf"), make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b.gguf"), []byte("b"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := sdktest.CatalogOptions{
		Config: json.RawMessage(fmt.Sprintf(`{"dir":%q}`, dir)), BadConfig: json.RawMessage(`{"dir":"/no/such/folder"}`), Ref: "a.gguf", NoRef: "c.gguf",
	}
	t.Run("in process", func(t *testing.T) {
		t.Parallel()
		sdktest.Catalog(t, sdktest.CatalogInProcess(func() catalog.Source { return fake.NewCatalog("fake") }), o)
	})
	t.Run("binary", func(t *testing.T) {
		t.Parallel()
		sdktest.Catalog(t, sdktest.CatalogBinary(filepath.Join(built, "rbee-catalog-fake")), o)
	})
}
