package hive

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gobuild"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/core/plugintest"
	"github.com/rbee-project/rbee/core/store"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// BuildOptions allow and bound the building of worker plugins.
type BuildOptions struct {
	Go    gobuild.Options // the hive sets WorkDir
	Suite []string        // command that runs the conformance suite; see plugintest.Options.Self
}

// builtSource is the prefix of the Source of a worker binary that was built on this hive.
const builtSource = "build:"

// builder builds worker plugins on the hive's machine.
type builder struct {
	hive     string        // display name
	options  *BuildOptions // nil: builds are disabled
	log      hclog.Logger
	disk     layout
	store    shelf
	plugins  pluginHost
	types    *typeSet
	binaries *binaries
	building chan struct{} // capacity one: the build that fills it may run
}

// workerBuild compiles a worker plugin, runs the conformance suite against it and publishes it as a
// worker binary. Only one build runs at a time.
func (bd *builder) workerBuild(ctx context.Context, r core.Request, run *job.Run) (core.WorkerBinary, error) {
	const what = "build worker"
	if bd.options == nil {
		return core.WorkerBinary{}, core.Errorf(core.Forbidden, "%s: hive %s builds nothing", what, bd.hive).Hint(
			"Whoever may build may run any program on the hive's machine. To allow it, set hive { build { enabled = true } } in its configuration and restart its agent.")
	}
	src, err := gobuild.ParseSource(r.Source)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	// Check now: otherwise a clash would only be reported after compiling.
	if typ := cmp.Or(r.Type, src.WorkerType()); typ != "" {
		if err := bd.canBeBuilt(typ); err != nil {
			return core.WorkerBinary{}, err
		}
	}
	select {
	case bd.building <- struct{}{}:
		defer func() { <-bd.building }()
	default:
		run.Log("another build is under way: waiting for it")
		select {
		case bd.building <- struct{}{}:
			defer func() { <-bd.building }()
		case <-ctx.Done():
			return core.WorkerBinary{}, fmt.Errorf("%s: %w", what, core.FromContext(ctx))
		}
	}
	// It is below the folder of the run files, which is swept when an agent starts.
	dir, err := os.MkdirTemp(bd.disk.run, "b")
	if err != nil {
		return core.WorkerBinary{}, core.Wrap(err, core.Internal, what)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			bd.log.Warn("remove the folder of a build", "error", err)
		}
	}()
	exe := filepath.Join(dir, "rbee-worker-"+cmp.Or(r.Type, "built"))
	o := bd.options.Go
	o.WorkDir = dir
	if o.Start, err = bd.startBuild(o, src, dir); err != nil {
		return core.WorkerBinary{}, err
	}
	if err := gobuild.Build(ctx, o, src, exe, func(line string) { run.Log("%s", line) }); err != nil {
		return core.WorkerBinary{}, err
	}
	spec, info, err := bd.judgeBuilt(ctx, r.Type, exe, run)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	b, err := bd.publishBuilt(ctx, spec, info, src, run)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	t, err := bd.types.addBuilt(b.Type)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	if b, err = bd.binaries.probeBinary(ctx, t, b, run); err != nil {
		return core.WorkerBinary{}, err
	}
	return b, bd.types.probe(ctx, t)
}

// startBuild returns a function that starts the toolchain confined like a plugin: neither it nor
// what it runs for a module sees the agent's data or a home folder; it may read the source and
// write the caches.
func (bd *builder) startBuild(o gobuild.Options, src gobuild.Source, dir string) (func(*exec.Cmd) error, error) {
	c := pluginhost.Confined{Dir: dir}
	for _, cache := range []string{o.BuildCache, o.ModuleCache} {
		if cache == "" {
			continue
		}
		if err := os.MkdirAll(cache, 0o700); err != nil {
			return nil, core.Wrap(err, core.Internal, "build worker: make the cache")
		}
		c.Write = append(c.Write, cache)
	}
	if root := src.Root(); root != "" {
		c.Read = append(c.Read, root)
	}
	return func(cmd *exec.Cmd) error {
		c := c
		if tool, err := filepath.EvalSymlinks(cmd.Path); err == nil {
			c.Read = append(slices.Clone(c.Read), filepath.Dir(filepath.Dir(tool))) // GOROOT
		}
		return bd.plugins.StartConfined(cmd, c)
	}, nil
}

// canBeBuilt checks that a built worker type may have this name. Errors: Invalid, Conflict.
func (bd *builder) canBeBuilt(typ string) error {
	if !store.ValidWorkerType(typ) {
		return core.Errorf(core.Invalid, "build worker: %q cannot be a worker type: use up to 32 small letters, digits and dashes", typ)
	}
	if t, err := bd.types.named(typ); err == nil && !t.built {
		return core.Errorf(core.Conflict, "build worker: this hive has a plugin for the worker type %s already", typ).Hint("Give it another name with --type.")
	}
	return nil
}

// judgeBuilt asks a fresh executable for its identity, and runs the conformance suite against it.
func (bd *builder) judgeBuilt(ctx context.Context, typ, exe string, run *job.Run) (pluginhost.Spec, sdk.Info, error) {
	const what = "build worker"
	spec, err := bd.plugins.FileSpec(sdk.KindWorker, cmp.Or(typ, "built"), exe)
	if err != nil {
		return spec, sdk.Info{}, err
	}
	info, _, err := bd.plugins.Describe(ctx, spec)
	if err != nil {
		return spec, info, said("look at what was built", err)
	}
	spec.Name = cmp.Or(typ, info.Name)
	if err := bd.canBeBuilt(spec.Name); err != nil {
		return spec, info, err
	}
	folder := filepath.Join(filepath.Dir(exe), "suite")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return spec, info, core.Wrap(err, core.Internal, what)
	}
	model := bd.smallestModel()
	o := plugintest.Options{
		Self: bd.options.Suite, Kind: sdk.KindWorker, Executable: exe,
		Start: func(cmd *exec.Cmd) error {
			return bd.plugins.StartConfined(cmd, pluginhost.Confined{Name: "worker-" + spec.Name, Executable: exe, Dir: folder, Read: []string{model}})
		},
	}
	if o.ModelPath = model; o.ModelPath == "" || info.Engine.Name != "" {
		o.NoStart = true
		run.Log("the conformance suite does not start a worker: it has no model to do so, or the type needs an engine")
	}
	report, err := plugintest.Run(ctx, o, func(r core.TestResult) { run.Log("%s: %s", r.Outcome, r.Name) })
	if err != nil {
		return spec, info, err
	}
	if !report.Passed {
		var failed []string
		for _, r := range report.Results {
			if r.Outcome != core.TestFailed {
				continue
			}
			failed = append(failed, r.Name)
			for _, line := range r.Output {
				run.Log("%s: %s", r.Name, line)
			}
		}
		return spec, info, core.Errorf(core.Invalid, "%s: it does not pass the conformance suite of plugins: %s", what, strings.Join(failed, ", ")).Hint(
			"The job's log says why; \"rbee plugin test\" runs the suite against an executable.")
	}
	return spec, info, nil
}

// smallestModel returns the path of a model to try a worker with; empty: none stored.
func (bd *builder) smallestModel() string {
	models, err := bd.store.Models()
	if err != nil {
		return ""
	}
	models = slices.DeleteFunc(models, func(m core.Model) bool { return m.Damaged != "" })
	if len(models) == 0 {
		return ""
	}
	m := slices.MinFunc(models, func(a, b core.Model) int { return cmp.Compare(a.SizeBytes, b.SizeBytes) })
	_, path, err := bd.store.Model(m.ID)
	if err != nil {
		return ""
	}
	return path
}

// publishBuilt puts a build into the store, with its engine.
func (bd *builder) publishBuilt(ctx context.Context, s pluginhost.Spec, info sdk.Info, src gobuild.Source, run *job.Run) (core.WorkerBinary, error) {
	spec := store.BinarySpec{
		Type: s.Name, Version: cmp.Or(info.Version, "0"), Executable: s.Executable, Source: builtSource + src.String(),
		EngineName: info.Engine.Name, EngineVersion: info.Engine.Version, Prefix: info.Engine.Prefix, Links: info.Engine.Links,
	}
	supply, _, err := bd.binaries.engineSupply(ctx, &spec, info.Engine.Ref, nil, run)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	b, err := bd.store.PutBinary(ctx, spec, supply, run.Progress)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	bd.binaries.removeSuperseded()
	return b, nil
}

// findBuilt creates worker types for the binaries that were built here, when the hive starts.
func (bd *builder) findBuilt() error {
	list, err := bd.store.Binaries()
	if err != nil {
		return err
	}
	for _, b := range list {
		if !strings.HasPrefix(b.Source, builtSource) {
			continue
		}
		if _, err := bd.types.workerType(b.Type); err == nil {
			continue // another version is used, or a plugin now has that name
		}
		if _, err := bd.types.addBuilt(b.Type); err != nil {
			bd.log.Warn("a worker type that was built here cannot be used", "plugin", b.Type, "error", err)
		}
	}
	return nil
}
