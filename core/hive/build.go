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
	Go    gobuild.Options // WorkDir is set by the hive
	Suite []string        // the command that runs the conformance suite; see plugintest.Options.Self
}

// builtSource begins the Source of a worker binary that was built on this hive.
const builtSource = "build:"

// workerBuild compiles a worker plugin, runs the conformance suite against it and publishes it as a
// worker binary. One builds at a time.
func (h *Hive) workerBuild(ctx context.Context, r core.Request, run *job.Run) (core.WorkerBinary, error) {
	const what = "build worker"
	if h.opts.Build == nil {
		return core.WorkerBinary{}, core.Errorf(core.Forbidden, "%s: hive %s builds nothing", what, h.opts.Name).Hint(
			"Whoever may build may run any program on the hive's machine. To allow it, set hive { build { enabled = true } } in its configuration and restart its agent.")
	}
	src, err := gobuild.ParseSource(r.Source)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	// Otherwise a clash would be told after compiling.
	if typ := cmp.Or(r.Type, src.WorkerType()); typ != "" {
		if err := h.canBeBuilt(typ); err != nil {
			return core.WorkerBinary{}, err
		}
	}
	select {
	case h.building <- struct{}{}:
		defer func() { <-h.building }()
	default:
		run.Log("another build is under way: waiting for it")
		select {
		case h.building <- struct{}{}:
			defer func() { <-h.building }()
		case <-ctx.Done():
			return core.WorkerBinary{}, fmt.Errorf("%s: %w", what, core.FromContext(ctx))
		}
	}
	// Below the folder of the run files, which is swept when an agent starts.
	dir, err := os.MkdirTemp(h.disk.run, "b")
	if err != nil {
		return core.WorkerBinary{}, core.Wrap(err, core.Internal, what)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			h.log.Warn("remove the folder of a build", "error", err)
		}
	}()
	exe := filepath.Join(dir, "rbee-worker-"+cmp.Or(r.Type, "built"))
	o := h.opts.Build.Go
	o.WorkDir = dir
	if o.Start, err = h.startBuild(o, src, dir); err != nil {
		return core.WorkerBinary{}, err
	}
	if err := gobuild.Build(ctx, o, src, exe, func(line string) { run.Log("%s", line) }); err != nil {
		return core.WorkerBinary{}, err
	}
	spec, info, err := h.judgeBuilt(ctx, r.Type, exe, run)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	b, err := h.publishBuilt(ctx, spec, info, src, run)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	t, err := h.addBuilt(b.Type)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	if b, err = h.probeBinary(ctx, t, b, run); err != nil {
		return core.WorkerBinary{}, err
	}
	return b, h.probe(ctx, t)
}

// startBuild returns how a build starts the toolchain: like a plugin, so that neither it nor what
// it runs for a module sees the agent's data or a home folder, with the source to read and the
// caches to write.
func (h *Hive) startBuild(o gobuild.Options, src gobuild.Source, dir string) (func(*exec.Cmd) error, error) {
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
		return h.plugins.StartConfined(cmd, c)
	}, nil
}

// canBeBuilt says whether a worker type of this name may be a built one. Errors: Invalid, Conflict.
func (h *Hive) canBeBuilt(typ string) error {
	if !store.ValidWorkerType(typ) {
		return core.Errorf(core.Invalid, "build worker: %q cannot be a worker type: use up to 32 small letters, digits and dashes", typ)
	}
	if t, err := h.typeNamed(typ); err == nil && !t.built {
		return core.Errorf(core.Conflict, "build worker: this hive has a plugin for the worker type %s already", typ).Hint("Give it another name with --type.")
	}
	return nil
}

// judgeBuilt asks a fresh executable who it is, and runs the conformance suite against it.
func (h *Hive) judgeBuilt(ctx context.Context, typ, exe string, run *job.Run) (pluginhost.Spec, sdk.Info, error) {
	const what = "build worker"
	spec, err := h.plugins.FileSpec(sdk.KindWorker, cmp.Or(typ, "built"), exe)
	if err != nil {
		return spec, sdk.Info{}, err
	}
	info, _, err := h.plugins.Describe(ctx, spec)
	if err != nil {
		return spec, info, said("look at what was built", err)
	}
	spec.Name = cmp.Or(typ, info.Name)
	if err := h.canBeBuilt(spec.Name); err != nil {
		return spec, info, err
	}
	folder := filepath.Join(filepath.Dir(exe), "suite")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return spec, info, core.Wrap(err, core.Internal, what)
	}
	model := h.smallestModel()
	o := plugintest.Options{
		Self: h.opts.Build.Suite, Kind: sdk.KindWorker, Executable: exe,
		Start: func(cmd *exec.Cmd) error {
			return h.plugins.StartConfined(cmd, pluginhost.Confined{Name: "worker-" + spec.Name, Executable: exe, Dir: folder, Read: []string{model}})
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

// smallestModel is the path of a model to try a worker with; empty: there is none.
func (h *Hive) smallestModel() string {
	models, err := h.store.Models()
	if err != nil {
		return ""
	}
	models = slices.DeleteFunc(models, func(m core.Model) bool { return m.Damaged != "" })
	if len(models) == 0 {
		return ""
	}
	m := slices.MinFunc(models, func(a, b core.Model) int { return cmp.Compare(a.SizeBytes, b.SizeBytes) })
	_, path, err := h.store.Model(m.ID)
	if err != nil {
		return ""
	}
	return path
}

// publishBuilt puts what was built into the store, with its engine.
func (h *Hive) publishBuilt(ctx context.Context, s pluginhost.Spec, info sdk.Info, src gobuild.Source, run *job.Run) (core.WorkerBinary, error) {
	spec := store.BinarySpec{
		Type: s.Name, Version: cmp.Or(info.Version, "0"), Executable: s.Executable, Source: builtSource + src.String(),
		EngineName: info.Engine.Name, EngineVersion: info.Engine.Version, Prefix: info.Engine.Prefix, Links: info.Engine.Links,
	}
	supply, _, err := h.engineSupply(ctx, &spec, info.Engine.Ref, nil, run)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	b, err := h.store.PutBinary(ctx, spec, supply, run.Progress)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	h.removeSuperseded()
	return b, nil
}

// builtBinary finds the binary of a type that was built here. Errors: NotFound, Integrity, Invalid
// for what only a plugin can be asked for.
func (h *Hive) builtBinary(t *workerType, w wish) (core.WorkerBinary, error) {
	again := "\"rbee worker build\" builds it again."
	if w.from != "" || w.force {
		return core.WorkerBinary{}, core.Errorf(core.Invalid, "find worker binary: worker type %s was built on this hive and cannot be downloaded", t.name()).Hint("%s", again)
	}
	id := t.name()
	if w.version != "" {
		id += "@" + w.version
	}
	b, err := h.store.Binary(id)
	if err == nil && b.Damaged != "" {
		err = core.Errorf(core.Integrity, "find worker binary: %s is damaged: %s", b.ID, b.Damaged).Hint("%s", again)
	}
	return b, err
}

// findBuilt makes worker types of the binaries that were built here, at the start of the hive.
func (h *Hive) findBuilt() error {
	list, err := h.store.Binaries()
	if err != nil {
		return err
	}
	for _, b := range list {
		if !strings.HasPrefix(b.Source, builtSource) {
			continue
		}
		if _, err := h.workerType(b.Type); err == nil {
			continue // has another version, or there is a plugin of that name now
		}
		if _, err := h.addBuilt(b.Type); err != nil {
			h.log.Warn("a worker type that was built here cannot be used", "plugin", b.Type, "error", err)
		}
	}
	return nil
}

// addBuilt makes, or makes anew, the worker type of the newest sound binary of a built type.
func (h *Hive) addBuilt(typ string) (*workerType, error) {
	exe, _, err := h.store.BinaryPaths(typ)
	if err != nil {
		return nil, err
	}
	spec, err := h.plugins.FileSpec(sdk.KindWorker, typ, exe)
	if err != nil {
		return nil, err
	}
	t := newType(spec)
	t.built = true
	h.mu.Lock()
	h.types = append(slices.DeleteFunc(slices.Clone(h.types), func(o *workerType) bool { return o.name() == typ }), t)
	h.mu.Unlock()
	h.beat.bump()
	return t, nil
}

// forgetType drops a built type whose last binary was deleted, and lets one that has others left
// use those.
func (h *Hive) forgetType(ctx context.Context, typ string) {
	t, err := h.workerType(typ)
	if err != nil || !t.built {
		return
	}
	if t, err = h.addBuilt(typ); err == nil {
		err = h.probe(ctx, t)
	}
	if err == nil {
		return
	}
	h.mu.Lock()
	h.types = slices.DeleteFunc(slices.Clone(h.types), func(o *workerType) bool { return o.name() == typ })
	h.mu.Unlock()
	h.beat.bump()
}
