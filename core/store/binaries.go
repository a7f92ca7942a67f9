package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
)

// BinarySpec is a worker binary to put into the store.
type BinarySpec struct {
	Type       string
	Version    string // version of the plugin alone; see ID
	Executable string // path of the plugin executable on this machine, which is copied
	Folder     string // folder of the plugin, if it is more than the executable; copied whole
	// required digest of the executable or the folder, "sha256:<hex>"; empty accepts any
	Digest        string
	EngineName    string // empty: no engine
	EngineVersion string
	Source        string    // catalog reference of the engine, or "local"
	Engine        *FileSpec // a .tar.gz with a digest; nil: no engine
	// Prefix is removed from the archive entries below it; other entries are not unpacked. It is
	// empty or ends with a slash.
	Prefix string
	Links  map[string]string // link name → name of an unpacked file, both without a slash
	Force  bool              // fetch again even if a sound entry exists
}

// ID returns the id of the entry that the spec makes: "<type>@<version>", or
// "<type>@<version>-<engine name>-<engine version>". If an entry with other code already has that
// id, the entry's id ends with "+" and the start of its own digest.
func (b BinarySpec) ID() string { return b.Type + "@" + b.version() }

func (b BinarySpec) version() string {
	if b.EngineName == "" {
		return b.Version
	}
	return b.Version + "-" + b.EngineName + "-" + b.EngineVersion
}

// binaries manages the worker binaries below workers/.
type binaries struct {
	*folder
	*checked
	*transfers

	limits   unpackLimits
	installs flights[core.WorkerBinary]
	states   sync.Mutex // held while the state.json of a worker binary is read, changed and written
}

// A published folder never changes except for its state.json: a running worker keeps the files that
// it was started from. Installing the same code again (Force, the repair of a damaged entry)
// publishes a new revision beside it, "<version>~2" and so on, and the highest revision stands for
// the id. Other code has another id.
const (
	manifestFile = "manifest.json"
	stateFile    = "state.json"
	engineDir    = "engine"
)

// binaryManifest is the contents of manifest.json.
type binaryManifest struct {
	Format     int               `json:"format"`
	Binary     core.WorkerBinary `json:"binary"`
	Executable string            `json:"executable"` // name in the folder
	Engine     *binaryEngine     `json:"engine,omitempty"`
	// Folder lists the files of a plugin that is a folder; null if the plugin is only the
	// executable.
	Folder []folderFile `json:"folder,omitempty"`
}

// folderFile is a file of a plugin that is a folder.
type folderFile struct {
	Path       string `json:"path"`
	Executable bool   `json:"executable"`
}

// binaryEngine is the origin of the files in engine/.
type binaryEngine struct {
	Ref    string            `json:"ref"`
	Digest string            `json:"digest"` // digest of the archive
	Prefix string            `json:"prefix"`
	Links  map[string]string `json:"links"`
}

// Probe is the result of probing a worker binary on this machine.
type Probe struct {
	Devices  []core.Device   `json:"devices"`
	Problem  string          `json:"problem,omitempty"` // why it cannot be used here; empty: it can
	Checks   []core.Check    `json:"checks,omitempty"`
	Warnings []string        `json:"warnings,omitempty"`
	Schema   json.RawMessage `json:"schema,omitempty"` // core.Schema of the plugin; nil: not known
}

// binaryState is the contents of state.json: findings about the entry on this machine.
type binaryState struct {
	Probe
	Damaged  string    `json:"damaged,omitempty"`
	ProbedAt time.Time `json:"probed_at,omitzero"`
}

// revision is one published folder.
type revision struct {
	folder   string // relative to the store's folder
	typ      string
	version  string
	number   int // 1 for the first
	manifest binaryManifest
	state    binaryState
	damaged  string
}

func (r revision) id() string { return r.typ + "@" + r.version }

// entry returns the revision as the API shows it.
func (r revision) entry(s *binaries) core.WorkerBinary {
	b := r.manifest.Binary
	b.ID, b.Type, b.Version = r.id(), r.typ, r.version
	b.Path = s.abs(r.folder)
	b.Devices, b.Problem, b.ProbedAt = nonNil(r.state.Devices), r.state.Problem, r.state.ProbedAt
	b.Checks, b.Warnings, b.Schema = r.state.Checks, r.state.Warnings, r.state.Schema
	b.InUseBy = []string{}
	b.Damaged = r.damaged
	return b
}

// Binaries lists the worker binaries, sorted by id, without the fields that only Binary returns. It
// marks damaged ones.
func (s *binaries) Binaries() ([]core.WorkerBinary, error) {
	revisions, err := s.current()
	if err != nil {
		return nil, err
	}
	out := make([]core.WorkerBinary, 0, len(revisions))
	for _, r := range revisions {
		b := r.entry(s)
		b.Files, b.Checks, b.Warnings, b.Schema = nil, nil, nil, nil
		out = append(out, b)
	}
	return out, nil
}

// Binary finds a worker binary by id; a type alone selects the newest sound one of that type, or
// the newest if none is sound. core.NotFound carries the nearest names as hint.
func (s *binaries) Binary(id string) (core.WorkerBinary, error) {
	r, err := s.binary(id)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	return r.entry(s), nil
}

// InstalledBinary finds the newest sound worker binary that matches the spec, by the digest of its
// executable. If none is sound, it returns a damaged one. Errors: NotFound.
func (s *binaries) InstalledBinary(spec BinarySpec) (core.WorkerBinary, error) {
	all, err := s.current()
	if err != nil {
		return core.WorkerBinary{}, err
	}
	var best *revision
	for i, r := range all {
		if b := r.manifest.Binary; r.kin(spec) && b.Digest == spec.Digest {
			sound := r.damaged == ""
			if best == nil || sound && best.damaged != "" || sound == (best.damaged == "") && newer(r, *best) {
				best = &all[i]
			}
		}
	}
	if best == nil {
		return core.WorkerBinary{}, core.Errorf(core.NotFound, "no worker binary %s of this executable in the store", spec.ID())
	}
	return best.entry(s), nil
}

// baseVersion returns the version in the revision's spec, without choose's suffix.
func (r revision) baseVersion() string {
	b := r.manifest.Binary
	base, code, found := cutLast(r.version, "+")
	if !found || len(code) != codeDigits || b.EngineName != "" && strings.HasSuffix(r.version, "-"+b.EngineName+"-"+b.EngineVersion) {
		return r.version
	}
	return base
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// kin reports whether the revision has the spec's plugin and engine in the same versions, whatever
// the code.
func (r revision) kin(spec BinarySpec) bool {
	b := r.manifest.Binary
	rest, ok := strings.CutPrefix(r.version, spec.version())
	return r.typ == spec.Type && ok && (rest == "" || rest[0] == '+') && b.EngineName == spec.EngineName && b.EngineVersion == spec.EngineVersion
}

// BinaryPaths returns the paths of a worker binary's executable and of its engine folder, which is
// empty without an engine. id is as in Binary; a damaged entry is core.Integrity. The files at the
// paths do not change as long as RemoveSuperseded's inUse reports them as in use.
func (s *binaries) BinaryPaths(id string) (exe, engine string, err error) {
	r, err := s.binary(id)
	if err != nil {
		return "", "", err
	}
	if r.damaged != "" {
		return "", "", damagedBinary(r)
	}
	if r.manifest.Engine != nil {
		engine = s.abs(path.Join(r.folder, engineDir))
	}
	return s.abs(path.Join(r.folder, r.manifest.Executable)), engine, nil
}

func damagedBinary(r revision) error {
	return core.Errorf(core.Integrity, "worker binary %s is damaged: %s", r.id(), r.damaged).Hint(
		"`rbee worker binary download %s` replaces it.", r.typ)
}

func (s *binaries) binary(id string) (revision, error) {
	revisions, err := s.current()
	if err != nil {
		return revision{}, err
	}
	var best *revision
	var names []string
	for i, r := range revisions {
		if r.id() == id {
			return r, nil
		}
		names = append(names, r.id(), r.typ)
		if r.typ != id {
			continue
		}
		sound := r.damaged == ""
		if best == nil || sound && best.damaged != "" || sound == (best.damaged == "") && newer(r, *best) {
			best = &revisions[i]
		}
	}
	if best != nil {
		return *best, nil
	}
	err = core.Errorf(core.NotFound, "no worker binary %q in the store", id)
	slices.Sort(names)
	if near := core.Nearest(id, slices.Compact(names)); len(near) > 0 {
		return revision{}, core.WithHint(err, "Did you mean %s?", strings.Join(near, " or "))
	}
	typ, _, _ := strings.Cut(id, "@")
	return revision{}, core.WithHint(err, "`rbee worker binary list` shows what is there; `rbee worker binary download %s` fetches it.", typ)
}

func newer(a, b revision) bool {
	return cmp.Or(a.manifest.Binary.InstalledAt.Compare(b.manifest.Binary.InstalledAt), cmp.Compare(a.version, b.version)) > 0
}

// current returns the highest revision of each id, sorted by id.
func (s *binaries) current() ([]revision, error) {
	all, err := s.revisions()
	if err != nil {
		return nil, err
	}
	var out []revision
	for _, r := range all {
		if n := len(out); n > 0 && out[n-1].id() == r.id() {
			out[n-1] = r
		} else {
			out = append(out, r)
		}
	}
	for i := range out {
		s.load(&out[i])
	}
	return out, nil
}

// revisions lists the published folders by id and number, without reading them.
func (s *binaries) revisions() ([]revision, error) {
	types, err := fs.ReadDir(s.root.FS(), workersDir)
	if err != nil {
		return nil, fmt.Errorf("list worker binaries: %w", err)
	}
	var out []revision
	for _, t := range types {
		if !t.IsDir() || !workerType.MatchString(t.Name()) {
			continue
		}
		folders, err := fs.ReadDir(s.root.FS(), path.Join(workersDir, t.Name()))
		if err != nil {
			return nil, fmt.Errorf("list worker binaries: %w", err)
		}
		for _, f := range folders {
			version, number, ok := parseFolder(f.Name())
			if ok && f.IsDir() && checkBinaryName(t.Name(), version) == nil {
				out = append(out, revision{folder: path.Join(workersDir, t.Name(), f.Name()), typ: t.Name(), version: version, number: number})
			}
		}
	}
	slices.SortFunc(out, func(a, b revision) int { return cmp.Or(cmp.Compare(a.id(), b.id()), a.number-b.number) })
	return out, nil
}

func folderName(version string, number int) string {
	if number == 1 {
		return version
	}
	return version + "~" + strconv.Itoa(number)
}

func parseFolder(name string) (version string, number int, ok bool) {
	version, n, revised := strings.Cut(name, "~")
	if !revised {
		return version, 1, true
	}
	number, err := strconv.Atoi(n)
	return version, number, err == nil && number > 1 && strconv.Itoa(number) == n
}

// load reads a revision and sets damaged to what is wrong with it, as far as names, sizes and links
// tell.
func (s *binaries) load(r *revision) {
	r.damaged = ""
	if err := s.readJSON(path.Join(r.folder, manifestFile), &r.manifest); err != nil {
		r.damaged = err.Error()
		return
	}
	m := &r.manifest
	if m.Format != recordFormat || m.Binary.ID != r.id() || !plainName(m.Executable) {
		r.damaged = manifestFile + " is not one of this worker binary that this version of rbee can read"
		return
	}
	if err := s.readJSON(path.Join(r.folder, stateFile), &r.state); err != nil && core.KindOf(err) != core.NotFound {
		// the next probe rewrites it
		r.state = binaryState{Probe: Probe{Problem: err.Error()}}
	}
	r.damaged = cmp.Or(s.compareFolder(*r), r.state.Damaged)
}

// compareFolder returns how a folder differs from its manifest: missing entries, other sizes or
// kinds, foreign entries.
func (s *binaries) compareFolder(r revision) string {
	want := map[string]int64{}
	for _, f := range r.manifest.Binary.Files {
		want[f.Path] = f.SizeBytes
	}
	links := map[string]string{}
	if e := r.manifest.Engine; e != nil {
		for name, target := range e.Links {
			links[path.Join(engineDir, name)] = target
		}
	}
	runs := map[string]bool{}
	for _, f := range r.manifest.Folder {
		runs[f.Path] = f.Executable
	}
	folder, err := s.root.OpenRoot(r.folder)
	if err != nil {
		return err.Error()
	}
	defer folder.Close()
	why := ""
	err = fs.WalkDir(folder.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || name == manifestFile || name == stateFile {
			return err
		}
		size, isFile := want[name]
		target, isLink := links[name]
		delete(want, name)
		delete(links, name)
		switch {
		case isLink:
			if got, err := folder.Readlink(name); err != nil || got != target {
				why = fmt.Sprintf("%s should be a link to %s", name, target)
			}
		case !isFile:
			why = name + " does not belong there"
		case !d.Type().IsRegular():
			why = name + " is not a regular file"
		default:
			info, err := d.Info()
			if err != nil {
				return err
			}
			if info.Size() != size {
				why = fmt.Sprintf("%s has %d bytes and should have %d", name, info.Size(), size)
			}
			if x, ok := runs[name]; ok && x != (info.Mode().Perm()&0o111 != 0) {
				why = fmt.Sprintf("%s has mode %s", name, info.Mode())
			}
		}
		if why != "" {
			return fs.SkipAll
		}
		return nil
	})
	switch {
	case why != "":
		return why
	case err != nil:
		return err.Error()
	case len(want) > 0:
		return slices.Min(slices.Collect(maps.Keys(want))) + " is missing"
	case len(links) > 0:
		return slices.Min(slices.Collect(maps.Keys(links))) + " is missing"
	}
	return ""
}

// VerifyBinary reads all files of a worker binary, found as in Binary, and compares their digests.
// A difference is core.Integrity, and marks the entry as damaged from then on.
func (s *binaries) VerifyBinary(ctx context.Context, id string) error {
	r, err := s.binary(id)
	if err != nil {
		return err
	}
	return s.verifyBinary(ctx, r, false, func(int64) {})
}

// verifyBinary compares the files of one revision with their digests; if changed is set, only those
// that may have changed since the last check. It calls read for each piece.
func (s *binaries) verifyBinary(ctx context.Context, r revision, changed bool, read func(int64)) error {
	if r.damaged != "" {
		return damagedBinary(r)
	}
	for _, f := range r.manifest.Binary.Files {
		if !fs.ValidPath(f.Path) {
			r.damaged = fmt.Sprintf("%s names the unsafe file %q", manifestFile, f.Path)
			return damagedBinary(r)
		}
		name := path.Join(r.folder, f.Path)
		if changed && s.otherChecked(name, f.Digest) {
			continue
		}
		var got digest
		st, same, err := s.stamped(name, func() (err error) {
			got, err = s.sha256File(ctx, name, read)
			return err
		})
		if err != nil {
			return fmt.Errorf("verify worker binary %s: %w", r.id(), err)
		}
		if got.String() != f.Digest {
			r.damaged = f.Path + ": its content does not match its digest"
			err := s.changeState(r, func(st *binaryState) { st.Damaged = r.damaged })
			return errors.Join(damagedBinary(r), err)
		}
		if same {
			s.noteOther(name, f.Digest, st)
		}
	}
	return nil
}

// SetProbe stores the result of probing a worker binary. id is as in Binary.
func (s *binaries) SetProbe(id string, p Probe) error {
	r, err := s.binary(id)
	if err != nil {
		return err
	}
	p.Devices = nonNil(slices.Clone(p.Devices))
	err = s.changeState(r, func(st *binaryState) { st.Probe, st.ProbedAt = p, time.Now().UTC().Truncate(time.Second) })
	if err != nil {
		return fmt.Errorf("keep the probe of worker binary %s: %w", r.id(), err)
	}
	return nil
}

func (s *binaries) changeState(r revision, change func(*binaryState)) error {
	s.states.Lock()
	defer s.states.Unlock()
	var st binaryState
	if err := s.readJSON(path.Join(r.folder, stateFile), &st); err != nil {
		st = binaryState{} // missing, or broken and to be replaced
	}
	change(&st)
	return s.writeJSON(path.Join(r.folder, stateFile), st)
}

// RemoveSuperseded removes the folders of worker binaries that a later revision has replaced,
// except those in use. inUse gets the folder's path: the Path of the core.WorkerBinary that was
// once read from it.
func (s *binaries) RemoveSuperseded(inUse func(folder string) bool) error {
	old, err := s.superseded(inUse)
	if err != nil {
		return err
	}
	var failed []error
	for _, r := range old {
		failed = append(failed, s.removeFolder(r.folder))
	}
	return errors.Join(failed...)
}
