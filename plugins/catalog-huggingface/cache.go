package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

var sha256OK = regexp.MustCompile(`^[0-9a-f]{64}$`)

// cached is one repository in the cache of Hugging Face's tools: refs/<revision> holds a commit,
// snapshots/<commit>/ has the files as links into blobs/, where a file of Git LFS is named by its
// SHA-256. Links never lead it out of the repository's folder.
type cached struct {
	root *os.Root
}

// openCached opens the folder of a repository, or returns fs.ErrNotExist.
func openCached(cache string, ref reference) (*cached, error) {
	if cache == "" {
		return nil, fs.ErrNotExist
	}
	root, err := os.OpenRoot(filepath.Join(cache, "models--"+ref.org+"--"+ref.repo))
	if err != nil {
		return nil, err
	}
	return &cached{root: root}, nil
}

func (c *cached) close() { _ = c.root.Close() }

// commit returns the commit of a revision, according to the cache.
func (c *cached) commit(revision string) (string, error) {
	if commitOK.MatchString(revision) {
		return revision, nil
	}
	b, err := c.root.ReadFile(path.Join("refs", revision))
	if err != nil {
		return "", err
	}
	commit := strings.TrimSpace(string(b))
	if !commitOK.MatchString(commit) {
		return "", fmt.Errorf("refs/%s holds no commit: %w", revision, catalog.ErrIntegrity)
	}
	return commit, nil
}

// files lists the cached files of a commit.
func (c *cached) files(commit string) ([]hubFile, error) {
	snapshot := path.Join("snapshots", commit)
	var out []hubFile
	err := fs.WalkDir(c.root.FS(), snapshot, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if f, ok := c.stat(commit, strings.TrimPrefix(name, snapshot+"/")); ok {
			out = append(out, f)
		}
		return nil
	})
	return out, err
}

// stat describes one file of a commit.
func (c *cached) stat(commit, file string) (hubFile, bool) {
	name := path.Join("snapshots", commit, file)
	info, err := c.root.Stat(name)
	if err != nil || !info.Mode().IsRegular() {
		return hubFile{}, false
	}
	f := hubFile{path: file, size: info.Size(), cached: true}
	if target, err := c.root.Readlink(name); err == nil && sha256OK.MatchString(filepath.Base(target)) {
		f.sha256 = filepath.Base(target)
	}
	return f, true
}

// copy writes a file of a commit from offset on.
func (c *cached) copy(commit, file string, offset int64, w io.Writer) error {
	f, err := c.root.Open(path.Join("snapshots", commit, file))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

// resolveOffline resolves a reference from the cache alone.
func (s *source) resolveOffline(ref reference) (catalog.Manifest, error) {
	missing := func(err error) error {
		return sdk.WithHint(fmt.Errorf("%s is not in the Hugging Face cache %s (%w), and HF_HUB_OFFLINE is set: %w", ref, s.set.cache, err, catalog.ErrUnavailable),
			"Unset HF_HUB_OFFLINE in the agent's environment, or bring the model there with: hf download %s.", ref.id())
	}
	c, err := openCached(s.set.cache, ref)
	if err != nil {
		return catalog.Manifest{}, missing(errNotThere(err))
	}
	defer c.close()
	commit, err := c.commit(ref.rev())
	if err != nil {
		return catalog.Manifest{}, missing(errNotThere(err))
	}
	files, err := c.files(commit)
	if err != nil {
		return catalog.Manifest{}, missing(errNotThere(err))
	}
	all := variants(files)
	v, notes, err := choose(ref, all)
	if err != nil {
		return catalog.Manifest{}, err
	}
	v.named = len(having(all, v.quant)) == 1
	return s.manifest(ref, commit, "", v, append(notes, "taken from the Hugging Face cache, since HF_HUB_OFFLINE is set"), ""), nil
}

// errNotThere shortens the most common error.
func errNotThere(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("there is no such folder or revision")
	}
	return err
}
