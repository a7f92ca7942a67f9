package hive

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/store"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// wish is the requested binary of a worker type.
type wish struct {
	version string // as for engineOf; empty: the plugin's first choice
	from    string // catalog reference of the engine; empty: the plugin's own
	force   bool   // renew an installed one
}

// workerDownload installs a worker type: the plugin, and the engine that it needs.
func (bs *binaries) workerDownload(ctx context.Context, r core.Request, run *job.Run) (core.WorkerBinary, error) {
	t, err := bs.types.named(r.Type)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	return bs.install(ctx, t, wish{version: r.Version, from: r.From, force: r.Force}, run)
}

// ensureBinary returns the worker binary of a type, and installs it if it is missing or damaged. It
// uses an installed version as it is.
func (bs *binaries) ensureBinary(ctx context.Context, t *workerType, version string, run *job.Run) (core.WorkerBinary, error) {
	if version != "" {
		if b, err := bs.store.Binary(t.name() + "@" + version); err == nil && b.Damaged == "" {
			return b, nil
		}
	}
	return bs.install(ctx, t, wish{version: version}, run)
}

// install puts the worker binary of a type into the store unless it is already stored, and probes
// it.
func (bs *binaries) install(ctx context.Context, t *workerType, w wish, run *job.Run) (core.WorkerBinary, error) {
	const what = "install worker type"
	if t.built {
		return bs.builtBinary(t, w)
	}
	if err := bs.types.probe(ctx, t); err != nil {
		return core.WorkerBinary{}, err
	}
	info, seen, digest := t.probeKnown()
	if seen.Problem != "" {
		return core.WorkerBinary{}, unsupported(what, t.name(), seen.Problem)
	}
	engine, err := engineOf(t.name(), info, w.version)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	var offer *catalog.Manifest
	if w.from != "" {
		if engine.Name == "" {
			return core.WorkerBinary{}, core.Errorf(core.Invalid, "%s: worker type %s needs no engine, so there is nothing to take from %s", what, t.name(), w.from)
		}
		if engine, offer, err = bs.engineFrom(ctx, info, engine, w.from); err != nil {
			return core.WorkerBinary{}, err
		}
	}
	spec := store.BinarySpec{
		Type: t.name(), Version: cmp.Or(info.Version, "0"), Executable: t.spec.Executable, Folder: t.spec.Folder, Digest: digest, Source: "local", Force: w.force,
		EngineName: engine.Name, EngineVersion: engine.Version, Prefix: engine.Prefix, Links: engine.Links,
	}
	if !w.force {
		if have, err := bs.store.InstalledBinary(spec); err == nil && have.Damaged == "" {
			run.Log("worker binary %s is there already", have.ID)
			bs.engines.engineTried(ctx, t, nil)
			if have.Problem != "" || have.ProbedAt.IsZero() { // the problem may be over, or it was never probed
				return bs.probeBinary(ctx, t, have, run)
			}
			return have, nil
		}
	}
	b, err := bs.putBinary(ctx, spec, engine.Ref, offer, run)
	if w == (wish{}) || err == nil && w == (wish{force: true}) { // what a request would install by itself
		bs.engines.engineTried(ctx, t, err)
	}
	if err != nil {
		return core.WorkerBinary{}, err
	}
	bs.removeSuperseded()
	return bs.probeBinary(ctx, t, b, run)
}

// putBinary fetches what the spec needs and publishes it.
func (bs *binaries) putBinary(ctx context.Context, spec store.BinarySpec, ref string, offer *catalog.Manifest, run *job.Run) (core.WorkerBinary, error) {
	supply, source, err := bs.engineSupply(ctx, &spec, ref, offer, run)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	spec.Source = cmp.Or(source, spec.Source)
	return bs.store.PutBinary(ctx, spec, supply, run.Progress)
}

// engineSupply fills in the engine's archive, if the spec has an engine, and where it comes from:
// an exact reference. offer is the manifest that the catalog source returned for ref; nil: it is
// resolved.
func (bs *binaries) engineSupply(ctx context.Context, spec *store.BinarySpec, ref string, offer *catalog.Manifest, run *job.Run) (supply store.Supply, exact string, err error) {
	if spec.EngineName == "" {
		return nil, "", nil
	}
	if offer == nil {
		m, err := bs.catalogs.resolve(ctx, ref)
		if err != nil {
			return nil, "", err
		}
		offer = &m
	}
	m := *offer
	source, _, err := bs.catalogs.split(ref)
	if err != nil {
		return nil, "", err
	}
	exact = source.ref(m.Ref)
	spec.Engine = new(fileSpecs(m)[0])
	run.Log("fetching %s %s for worker type %s from %s", spec.EngineName, spec.EngineVersion, spec.Type, exact)
	return bs.catalogs.supply(exact, m, run.Log), exact, nil
}

// engineFrom returns the engine that a reference stands for, and what its catalog source offers. An
// engine that the plugin does not name needs the hive's permission. It gets the layout of the
// chosen engine and a version with the archive's digest, so that it is never mistaken for the
// plugin's own. Errors: Forbidden, Integrity for an archive without a digest.
func (bs *binaries) engineFrom(ctx context.Context, info sdk.Info, engine sdk.Engine, ref string) (sdk.Engine, *catalog.Manifest, error) {
	const what = "install worker type"
	source, _, err := bs.catalogs.split(ref)
	if err != nil {
		return sdk.Engine{}, nil, err
	}
	if known, ok := engineByRef(info, ref); ok {
		return known, nil, nil
	}
	if len(bs.settings.defaults.Load().Engines) == 0 {
		return sdk.Engine{}, nil, bs.engineRefused(ref)
	}
	m, err := bs.catalogs.resolve(ctx, ref)
	if err != nil {
		return sdk.Engine{}, nil, err
	}
	digest := m.Files[0].Digest
	_, sum, ok := strings.Cut(digest, ":")
	if !ok || len(sum) < codeDigits {
		return sdk.Engine{}, nil, core.Errorf(core.Integrity, "%s: %s publishes no digest of the engine", what, ref).Hint(
			"An engine is code: name its digest, such as https://host/file.tar.gz#sha256=…, or use another catalog source.")
	}
	if !engineAllowed(bs.settings.defaults.Load().Engines, source.ref(m.Ref), digest) {
		return sdk.Engine{}, nil, bs.engineRefused(ref)
	}
	engine.Ref, engine.Version = ref, cmp.Or(m.Version, engine.Version)+"+"+sum[:codeDigits]
	return engine, &m, nil
}

// codeDigits is how many hexadecimal digits of an engine's digest the version contains if no plugin
// names the engine.
const codeDigits = 12

func (bs *binaries) engineRefused(ref string) error {
	return core.Errorf(core.Forbidden, "install worker type: hive %s takes no engine from %s", bs.hive, ref).Hint(
		"An engine is code that runs on the hive's machine. To allow it, name its registry or digest in hive { engines { allow = [...] } } of the hive's configuration and restart its agent. --version chooses among the engines that the plugin names.")
}

// engineAllowed reports whether a list allows an archive with a digest and an exact reference.
func engineAllowed(allow []string, ref, digest string) bool {
	return slices.ContainsFunc(allow, func(a string) bool {
		switch {
		case a == digest, a == ref, strings.HasPrefix(ref, a+"@"), strings.HasPrefix(ref, a+"#"):
			return true
		}
		// A path with ".." leaves the allowed prefix.
		climbs := strings.Contains(ref, "..") || strings.Contains(strings.ToLower(ref), "%2e")
		return (strings.HasSuffix(a, ":") || strings.HasSuffix(a, "/")) && strings.HasPrefix(ref, a) && !climbs
	})
}

// binaryVersion returns the version of the worker binary made of a plugin and an engine.
func binaryVersion(info sdk.Info, e sdk.Engine) string {
	_, version, _ := strings.Cut(store.BinarySpec{Version: cmp.Or(info.Version, "0"), EngineName: e.Name, EngineVersion: e.Version}.ID(), "@")
	return version
}

// probeBinary runs an installed binary once, with its engine, and records what it found.
func (bs *binaries) probeBinary(ctx context.Context, t *workerType, b core.WorkerBinary, run *job.Run) (core.WorkerBinary, error) {
	exe, engine, release, err := bs.claims.holdBinary(ctx, b.ID)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	defer release()
	found, err := bs.types.fingerprint(ctx, t.spec, exe, engine)
	if ctx.Err() != nil {
		return core.WorkerBinary{}, err // not about the binary
	}
	f := found.seen
	problem := f.Problem
	if err != nil {
		problem = err.Error()
	}
	if problem != "" {
		run.Log("worker binary %s cannot be used here: %s", b.ID, problem)
	}
	for _, w := range f.Warnings {
		run.Log("worker binary %s: %s", b.ID, w)
	}
	probe := store.Probe{Devices: devicesOf(f), Problem: problem, Warnings: f.Warnings}
	for _, c := range f.Checks {
		probe.Checks = append(probe.Checks, core.Check{Name: c.Name, Passed: c.Passed, Detail: c.Detail})
	}
	if text, err := json.Marshal(found.schema); err == nil { // a default that is not JSON is the plugin's fault; the schema is only for display
		probe.Schema = text
	}
	if err := bs.store.SetProbe(b.ID, probe); err != nil {
		return core.WorkerBinary{}, err
	}
	if problem == "" {
		t.noteDevices(f) // with its engine the plugin may see more than without
		bs.beat.bump()
	}
	return bs.store.Binary(b.ID)
}

// builtBinary finds the binary of a type that was built here. Errors: NotFound, Integrity, Invalid
// for wishes that only a plugin supports.
func (bs *binaries) builtBinary(t *workerType, w wish) (core.WorkerBinary, error) {
	again := "\"rbee worker build\" builds it again."
	if w.from != "" || w.force {
		return core.WorkerBinary{}, core.Errorf(core.Invalid, "find worker binary: worker type %s was built on this hive and cannot be downloaded", t.name()).Hint("%s", again)
	}
	id := t.name()
	if w.version != "" {
		id += "@" + w.version
	}
	b, err := bs.store.Binary(id)
	if err == nil && b.Damaged != "" {
		err = core.Errorf(core.Integrity, "find worker binary: %s is damaged: %s", b.ID, b.Damaged).Hint("%s", again)
	}
	return b, err
}
