package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/bundle"
)

// PutBinary fetches a worker binary into the store, or returns the existing sound one unless
// spec.Force is set.
//
// It supersedes an entry made from another executable or archive than the spec's. It checks the
// size and digest of the whole archive before it unpacks anything; the archive may hold only plain
// files and folders with harmless names, within limits (core.Integrity, core.TooLarge). It refuses
// an engine without a digest as core.Integrity: an engine is code.
func (s *binaries) PutBinary(ctx context.Context, spec BinarySpec, from Supply, progress func(core.Progress)) (core.WorkerBinary, error) {
	b, err := s.putBinary(ctx, spec, from, progress)
	if err != nil {
		return core.WorkerBinary{}, fmt.Errorf("store worker binary %s: %w", spec.ID(), err)
	}
	return b, nil
}

func (s *binaries) putBinary(ctx context.Context, spec BinarySpec, from Supply, progress func(core.Progress)) (core.WorkerBinary, error) {
	if err := checkBinarySpec(spec); err != nil {
		return core.WorkerBinary{}, err
	}
	exe, err := os.Open(spec.Executable)
	if err != nil {
		return core.WorkerBinary{}, core.Errorf(core.NotFound, "open the plugin executable: %w", err).Hint("Check plugin_dir, or build the plugins again.")
	}
	defer exe.Close()
	info, err := exe.Stat()
	if err != nil {
		return core.WorkerBinary{}, err
	}
	if !info.Mode().IsRegular() {
		return core.WorkerBinary{}, core.Errorf(core.Invalid, "%s is not a regular file", spec.Executable)
	}
	h := newHasher(io.Discard, func(int64) {})
	if _, err := io.CopyBuffer(h, contextReader{ctx, exe}, make([]byte, copyBuffer)); err != nil {
		return core.WorkerBinary{}, fmt.Errorf("read %s: %w", spec.Executable, err)
	}
	p := &putting{s: s, spec: spec, exe: exe, exeSize: info.Size(), exeDigest: h.digest().String(), version: spec.version()}
	p.codeSize, p.codeDigest = p.exeSize, p.exeDigest
	if spec.Folder != "" {
		if err := p.readFolder(ctx); err != nil {
			return core.WorkerBinary{}, err
		}
	}
	if spec.Digest != "" && spec.Digest != p.codeDigest {
		return core.WorkerBinary{}, core.Errorf(core.Conflict, "%s was replaced in the meantime", path.Base(spec.Executable)).Hint("Try again: the new one is installed then.")
	}
	key := strings.Join([]string{spec.ID(), p.codeDigest, spec.engineDigest(), spec.Prefix, fmt.Sprint(spec.Links, spec.Force)}, "\x00")
	return s.installs.do(ctx, key, spec.engineOrigin(), progress, func(ctx context.Context, report func(core.Progress)) (core.WorkerBinary, error) {
		p.report = report
		return p.run(ctx, from)
	})
}

func (b BinarySpec) engineDigest() string {
	if b.Engine == nil {
		return ""
	}
	return b.Engine.Digest
}

func (b BinarySpec) engineOrigin() string {
	if b.Engine == nil {
		return ""
	}
	return b.Engine.origin()
}

func checkBinarySpec(spec BinarySpec) error {
	if err := checkBinaryName(spec.Type, spec.version()); err != nil {
		return err
	}
	if spec.Engine == nil {
		if len(spec.Links) > 0 || spec.Prefix != "" {
			return core.Errorf(core.Invalid, "it has links or a prefix for an engine that it does not have")
		}
		return nil
	}
	if err := checkFileSpec(*spec.Engine); err != nil {
		return err
	}
	if spec.Engine.Digest == "" {
		return core.Errorf(core.Integrity, "the source of its engine publishes no digest of %s", spec.Engine.Path).Hint(
			"An engine is code, and is only taken where its registry says what it should be: use another catalog source.")
	}
	if p := spec.Prefix; p != "" && (!strings.HasSuffix(p, "/") || !fs.ValidPath(strings.TrimSuffix(p, "/"))) {
		return core.Errorf(core.Invalid, "the prefix %q must be a relative folder with a slash at its end", p)
	}
	for name, target := range spec.Links {
		if !plainName(name) || !plainName(target) || name == target {
			return core.Errorf(core.Invalid, "the link %q to %q must be between two plain names of one folder", name, target)
		}
	}
	return nil
}

// putting is one worker binary being installed.
type putting struct {
	s          *binaries
	spec       BinarySpec
	exe        *os.File
	exeSize    int64
	exeDigest  string
	files      []bundle.File // files of a plugin that is a folder; nil: the plugin is only the executable
	codeSize   int64         // size of the executable or the folder
	codeDigest string        // digest of the same
	version    string        // version of the entry
	report     func(core.Progress)
}

// codeDigits bounds the hexadecimal digits of the code's digest in an id.
const codeDigits = 12

// choose returns the code's id, existing or new, and its newest revision.
func (p *putting) choose() (revision, bool, error) {
	there, found := p.find()
	if !found || there.manifest.Format == 0 || p.matches(there) {
		return there, found, nil // an unreadable entry cannot run, and is replaced
	}
	code := sha256.New()
	// fmt prints maps in sorted order
	fmt.Fprintf(code, "%s\n%s\n%s\n%v", p.codeDigest, p.spec.engineDigest(), p.spec.Prefix, p.spec.Links)
	p.version += "+" + hex.EncodeToString(code.Sum(nil))[:codeDigits]
	if err := checkBinaryName(p.spec.Type, p.version); err != nil {
		return revision{}, false, err
	}
	there, found = p.find()
	if found && there.manifest.Format != 0 && !p.matches(there) {
		return revision{}, false, core.Errorf(core.Conflict, "other code has the id %s@%s", p.spec.Type, p.version)
	}
	return there, found, nil
}

func (p *putting) run(ctx context.Context, supply Supply) (core.WorkerBinary, error) {
	there, found, err := p.choose()
	if err != nil {
		return core.WorkerBinary{}, err
	}
	if found && !p.spec.Force && there.damaged == "" && p.matches(there) {
		return there.entry(p.s), nil
	}
	stage, err := p.s.newStage(ctx)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	defer stage.discard()
	m := binaryManifest{Format: recordFormat, Executable: "rbee-worker-" + p.spec.Type, Binary: core.WorkerBinary{
		ID: p.spec.Type + "@" + p.version, Type: p.spec.Type, Version: p.version, EngineName: p.spec.EngineName, EngineVersion: p.spec.EngineVersion,
		Source: p.spec.Source, Digest: p.codeDigest, InstalledAt: time.Now().UTC().Truncate(time.Millisecond),
	}}
	var archived *arrival
	if p.spec.Engine != nil {
		m.Engine = &binaryEngine{Ref: p.spec.Engine.Ref, Digest: p.spec.Engine.Digest, Prefix: p.spec.Prefix, Links: p.spec.Links}
		var files []core.File
		if from, ok := p.engineSource(); ok && !p.spec.Force {
			files, err = p.copyEngine(ctx, stage, from)
		} else {
			if archived, err = p.s.bring(ctx, *p.spec.Engine, supply, p.report, func() bool { return false }); err != nil {
				return core.WorkerBinary{}, err
			}
			defer archived.close()
			files, err = p.unpack(ctx, stage, archived)
		}
		if err != nil {
			return core.WorkerBinary{}, err
		}
		m.Binary.Files = files
		if err := p.link(stage, files); err != nil {
			return core.WorkerBinary{}, err
		}
	}
	exe, err := p.copyExecutable(ctx, stage, m.Executable)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	more, err := p.copyFolder(ctx, stage)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	if p.files != nil {
		m.Folder = p.modes(m.Executable)
	}
	m.Binary.Files = slices.Concat([]core.File{exe}, more, m.Binary.Files)
	for _, f := range m.Binary.Files {
		m.Binary.SizeBytes += f.SizeBytes
	}
	if err := p.s.step("manifest"); err != nil {
		return core.WorkerBinary{}, err
	}
	if err := p.s.writeJSON(path.Join(stage.folder, manifestFile), m); err != nil {
		return core.WorkerBinary{}, err
	}
	r, err := p.publish(ctx, stage)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	if archived != nil {
		archived.remove() // no longer needed; a later Open removes leftovers
	}
	return r.entry(p.s), nil
}

// find returns the newest revision of the entry's id.
func (p *putting) find() (revision, bool) {
	all, err := p.s.current()
	if err != nil {
		return revision{}, false
	}
	i := slices.IndexFunc(all, func(r revision) bool { return r.typ == p.spec.Type && r.version == p.version })
	if i < 0 {
		return revision{}, false
	}
	return all[i], true
}

// engineSource returns a sound revision, of any type and version, that already has the spec's
// engine: a new release of a plugin need not fetch it again.
func (p *putting) engineSource() (revision, bool) {
	all, err := p.s.current()
	if err != nil {
		return revision{}, false
	}
	i := slices.IndexFunc(all, func(r revision) bool { return r.damaged == "" && p.sameEngine(r) })
	if i < 0 {
		return revision{}, false
	}
	return all[i], true
}

// matches reports whether r is exactly what the spec asks for.
func (p *putting) matches(r revision) bool {
	return r.manifest.Binary.Digest == p.codeDigest && (p.spec.Engine == nil) == (r.manifest.Engine == nil) && (p.spec.Engine == nil || p.sameEngine(r))
}

func (p *putting) sameEngine(r revision) bool {
	e := r.manifest.Engine
	return e != nil && e.Digest == p.spec.Engine.Digest && e.Prefix == p.spec.Prefix && maps.Equal(e.Links, p.spec.Links)
}

// unpack checks the archive's entries, then writes those below the prefix to the stage.
func (p *putting) unpack(ctx context.Context, stage *stage, archived *arrival) ([]core.File, error) {
	a := archive{file: archived.file, size: archived.size, prefix: p.spec.Prefix, limits: p.s.limits}
	_, total, err := a.measure(ctx)
	if err != nil {
		if core.KindOf(err) == core.Integrity || core.KindOf(err) == core.TooLarge {
			archived.remove() // fetching it again would not help
		}
		return nil, err
	}
	if err := p.s.checkSpace(total + p.codeSize); err != nil {
		return nil, err
	}
	if err := p.s.step("unpack"); err != nil {
		return nil, err
	}
	folder, err := stage.engine()
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	progress := p.counter("unpack "+path.Base(p.spec.Engine.Path), total)
	files, err := a.unpack(ctx, folder, progress)
	if err != nil {
		return nil, err
	}
	return below(engineDir, files), nil
}

// copyEngine copies the engine's files from another revision, if they match its manifest.
func (p *putting) copyEngine(ctx context.Context, stage *stage, from revision) ([]core.File, error) {
	source, err := p.s.root.OpenRoot(path.Join(from.folder, engineDir))
	if err != nil {
		return nil, err
	}
	defer source.Close()
	folder, err := stage.engine()
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	var files []core.File
	progress := p.counter("copy "+p.spec.EngineName, from.manifest.Binary.SizeBytes)
	for _, want := range from.manifest.Binary.Files {
		name, ok := strings.CutPrefix(want.Path, engineDir+"/")
		if !ok {
			continue
		}
		got, err := copyFile(ctx, source, folder, name, want.SizeBytes, progress)
		if err != nil {
			return nil, err
		}
		if got.Digest != want.Digest {
			return nil, core.Errorf(core.Integrity, "the installed %s does not match its digest", want.Path).Hint(
				"Fetch the engine anew with `rbee worker binary download %s --force`.", p.spec.Type)
		}
		files = append(files, got)
	}
	return below(engineDir, files), nil
}

func copyFile(ctx context.Context, from, to *os.Root, name string, size int64, wrote func(int64)) (core.File, error) {
	f, err := from.Open(name)
	if err != nil {
		return core.File{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return core.File{}, err
	}
	if dir := path.Dir(name); dir != "." {
		if err := to.MkdirAll(dir, 0o700); err != nil {
			return core.File{}, spaceError(name, err)
		}
	}
	return writeNew(to, name, info.Mode().Perm(), contextReader{ctx, f}, size, wrote)
}

// below prefixes the files' paths with a folder's name, and sorts them.
func below(folder string, files []core.File) []core.File {
	for i := range files {
		files[i].Path = path.Join(folder, files[i].Path)
	}
	slices.SortFunc(files, func(a, b core.File) int { return strings.Compare(a.Path, b.Path) })
	return files
}

// counter reports how much of total has been written.
func (p *putting) counter(phase string, total int64) func(int64) {
	done := int64(0)
	last := time.Time{}
	return func(n int64) {
		done += n
		if now := time.Now(); done >= total || now.Sub(last) >= reportEvery {
			last = now
			p.report(core.Progress{Phase: phase, Done: done, Total: total, Unit: "bytes"})
		}
	}
}

// link creates the spec's links, each to an unpacked file in the same folder.
func (p *putting) link(stage *stage, files []core.File) error {
	for _, name := range slices.Sorted(maps.Keys(p.spec.Links)) {
		target := p.spec.Links[name]
		has := func(n string) bool {
			return slices.ContainsFunc(files, func(f core.File) bool { return strings.EqualFold(f.Path, path.Join(engineDir, n)) })
		}
		if !has(target) {
			return core.Errorf(core.Invalid, "the engine has no file %s, to which %s should be a link", target, name).Hint(
				"The plugin expects another version of the engine: install the one that it names.")
		}
		if has(name) {
			return core.Errorf(core.Invalid, "the engine has a file %s already, so no link can have that name", name)
		}
		if err := p.s.root.Symlink(target, path.Join(stage.folder, engineDir, name)); err != nil {
			return err
		}
	}
	return nil
}

func (p *putting) copyExecutable(ctx context.Context, stage *stage, name string) (core.File, error) {
	if err := p.s.step("executable"); err != nil {
		return core.File{}, err
	}
	folder, err := p.s.root.OpenRoot(stage.folder)
	if err != nil {
		return core.File{}, err
	}
	defer folder.Close()
	f, err := writeNew(folder, name, 0o755, contextReader{ctx, io.NewSectionReader(p.exe, 0, p.exeSize+1)}, p.exeSize, func(int64) {})
	if err == nil && f.Digest != p.exeDigest {
		err = core.Errorf(core.Conflict, "%s was changed while it was copied", p.spec.Executable).Hint("Try again when it is built.")
	}
	return f, err
}

// publish publishes the staged folder as the next free revision of its id.
func (p *putting) publish(ctx context.Context, stage *stage) (revision, error) {
	if err := stage.sync(); err != nil {
		return revision{}, err
	}
	typeDir := path.Join(workersDir, p.spec.Type)
	if err := p.s.root.MkdirAll(typeDir, 0o700); err != nil {
		return revision{}, err
	}
	if err := p.s.syncDir(workersDir); err != nil {
		return revision{}, err
	}
	for {
		if err := ctx.Err(); err != nil {
			return revision{}, err
		}
		all, err := p.s.revisions()
		if err != nil {
			return revision{}, err
		}
		number := 1
		for _, r := range all {
			if r.typ == p.spec.Type && r.version == p.version {
				number = r.number + 1 // revisions are sorted
			}
		}
		r := revision{typ: p.spec.Type, version: p.version, number: number, folder: path.Join(typeDir, folderName(p.version, number))}
		if err := p.s.step("publish"); err != nil {
			return revision{}, err
		}
		err = p.s.publish(stage.folder, r.folder)
		if taken(err) || errors.Is(err, fs.ErrExist) {
			continue // another process was faster
		}
		if err != nil {
			return revision{}, err
		}
		p.s.load(&r)
		return r, nil
	}
}

// stage is a folder in partial/ in which a worker binary is assembled. Its lock file tells other
// processes that it is in use.
type stage struct {
	s      *folder
	folder string
	lock   *os.File
}

func (s *binaries) newStage(ctx context.Context) (*stage, error) {
	folder := path.Join(partialDir, "stage-"+rand.Text())
	lock, err := s.lockedFile(ctx, folder+".lock")
	if err != nil {
		return nil, err
	}
	st := &stage{s: s.folder, folder: folder, lock: lock}
	if err := s.root.Mkdir(folder, 0o700); err != nil {
		st.discard()
		return nil, spaceError(folder, err)
	}
	return st, nil
}

// discard removes the rest of the stage: the folder first, its lock last.
func (st *stage) discard() {
	err := st.s.root.RemoveAll(st.folder)
	if err == nil {
		err = st.s.root.Remove(st.folder + ".lock")
	}
	if err != nil {
		st.s.log.Warn("leftover of an unfinished worker binary could not be removed", "error", err)
	}
	_ = st.lock.Close()
}

// engine creates the engine's folder and opens it.
func (st *stage) engine() (*os.Root, error) {
	name := path.Join(st.folder, engineDir)
	if err := st.s.root.Mkdir(name, 0o700); err != nil {
		return nil, spaceError(name, err)
	}
	return st.s.root.OpenRoot(name)
}

// sync flushes the stage's folders; its files were flushed when they were written.
func (st *stage) sync() error {
	return fs.WalkDir(st.s.root.FS(), st.folder, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return st.s.syncDir(name)
	})
}

// removeFolder removes a folder of the store so that it is never seen half removed.
func (s *binaries) removeFolder(folder string) error {
	trash := path.Join(partialDir, "trash-"+rand.Text())
	if err := s.publish(folder, trash); err != nil {
		return err
	}
	s.forgetFolder(folder)
	return s.root.RemoveAll(trash)
}
