// Command enginedir installs a worker type into a store, in the same way as a hive, and prints the
// folder of its engine libraries: the engine's own tests need one without an agent.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/core/store"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

func main() {
	plugins := flag.String("plugins", "bin/plugins", "folder of the plugins")
	dir := flag.String("store", "bin/test-store", "folder of the store")
	workerType := flag.String("type", "cpu", "worker type")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	engine, err := install(ctx, *plugins, *dir, *workerType)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "enginedir: %v\n%s\n", err, core.HintOf(err))
		os.Exit(1)
	}
	fmt.Println(engine)
}

func install(ctx context.Context, plugins, dir, workerType string) (string, error) {
	plugins, err := filepath.Abs(plugins)
	if err != nil {
		return "", err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", err
	}
	log := hclog.New(&hclog.LoggerOptions{Name: "enginedir", Level: hclog.Warn, Output: os.Stderr})
	host := pluginhost.New(pluginhost.Options{PluginDir: plugins, Logger: log})
	spec, err := host.DefaultSpec(sdk.KindWorker, workerType)
	if err != nil {
		return "", err
	}
	info, _, err := host.Describe(ctx, spec)
	if err != nil {
		return "", err
	}
	source, ref, _ := strings.Cut(info.Engine.Ref, ":")
	sourceSpec, err := host.DefaultSpec(sdk.KindCatalog, source)
	if err != nil {
		return "", err
	}
	origin, err := host.LaunchCatalog(ctx, sourceSpec)
	if err != nil {
		return "", err
	}
	defer origin.Close()
	manifest, err := origin.Resolve(ctx, ref)
	if err != nil {
		return "", err
	}
	s, err := store.Open(dir, log)
	if err != nil {
		return "", err
	}
	defer s.Close()
	file := manifest.Files[0]
	put := store.BinarySpec{
		Type: workerType, Version: info.Version, Executable: spec.Executable,
		EngineName: info.Engine.Name, EngineVersion: info.Engine.Version, Source: info.Engine.Ref,
		Engine: &store.FileSpec{Path: file.Path, SizeBytes: file.SizeBytes, Digest: file.Digest, Locator: file.Locator, Ref: file.Ref},
		Prefix: info.Engine.Prefix, Links: info.Engine.Links,
	}
	fetch := func(ctx context.Context, f store.FileSpec, offset int64, w io.Writer) error {
		return origin.Fetch(ctx, catalog.File{Ref: f.Ref, Path: f.Path, SizeBytes: f.SizeBytes, Digest: f.Digest, Locator: f.Locator}, offset, w)
	}
	installed, err := s.PutBinary(ctx, put, store.Fetch(fetch), func(core.Progress) {})
	if err != nil {
		return "", err
	}
	_, engine, err := s.BinaryPaths(installed.ID)
	return engine, err
}
