package store

import (
	"context"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/bundle"
)

// The files of a folder plugin are directly in the folder of its worker binary, next to
// manifest.json and engine/, so that its executable finds its files beside it as in the plugin
// folder.

// readFolder lists the files of a plugin's folder and computes its digest.
func (p *putting) readFolder(ctx context.Context) error {
	dir := p.spec.Folder
	if filepath.Dir(p.spec.Executable) != dir {
		return core.Errorf(core.Invalid, "%s is not in the plugin's folder %s", p.spec.Executable, dir)
	}
	files, err := bundle.List(dir)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	p.codeSize = 0
	for i, f := range files {
		first, _, _ := strings.Cut(f.Path, "/")
		if first == engineDir || first == manifestFile || first == stateFile {
			return core.Errorf(core.Invalid, "the plugin's folder %s has %s, a name that the store needs", dir, first).Hint("Give it another name.")
		}
		p.codeSize += f.SizeBytes
		if files[i].Digest, err = digestIn(ctx, root, f.Path); err != nil {
			return err
		}
	}
	p.files, p.codeDigest = files, bundle.Sum(files)
	return nil
}

func digestIn(ctx context.Context, root *os.Root, name string) (string, error) {
	f, err := root.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := newHasher(io.Discard, func(int64) {})
	if _, err := io.CopyBuffer(h, contextReader{ctx, f}, make([]byte, copyBuffer)); err != nil {
		return "", err
	}
	return h.digest().String(), nil
}

// copyFolder copies the folder's files other than the executable.
func (p *putting) copyFolder(ctx context.Context, stage *stage) ([]core.File, error) {
	if p.files == nil {
		return nil, nil
	}
	source, err := os.OpenRoot(p.spec.Folder)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	to, err := p.s.root.OpenRoot(stage.folder)
	if err != nil {
		return nil, err
	}
	defer to.Close()
	exe := filepath.Base(p.spec.Executable)
	var out []core.File
	progress := p.counter("copy "+exe, p.codeSize)
	for _, want := range p.files {
		if want.Path == exe {
			continue
		}
		got, err := p.copyPart(ctx, source, to, want, progress)
		if err != nil {
			return nil, err
		}
		if got.Digest != want.Digest {
			return nil, core.Errorf(core.Conflict, "%s was changed while it was copied", path.Join(p.spec.Folder, want.Path)).Hint("Try again when it is complete.")
		}
		out = append(out, got)
	}
	return out, nil
}

func (p *putting) copyPart(ctx context.Context, from, to *os.Root, want bundle.File, wrote func(int64)) (core.File, error) {
	f, err := from.Open(want.Path)
	if err != nil {
		return core.File{}, err
	}
	defer f.Close()
	if dir := path.Dir(want.Path); dir != "." {
		if err := to.MkdirAll(dir, 0o700); err != nil {
			return core.File{}, spaceError(want.Path, err)
		}
	}
	mode := os.FileMode(0o644)
	if want.Executable {
		mode = 0o755
	}
	return writeNew(to, want.Path, mode, contextReader{ctx, f}, want.SizeBytes, wrote)
}

// modes returns the manifest's entries for the folder's files. exe is the name of the executable in
// the store.
func (p *putting) modes(exe string) []folderFile {
	var out []folderFile
	for _, f := range p.files {
		if f.Path == filepath.Base(p.spec.Executable) {
			f.Path, f.Executable = exe, true
		}
		out = append(out, folderFile{Path: f.Path, Executable: f.Executable})
	}
	return out
}
