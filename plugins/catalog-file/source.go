package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

const (
	maxDepth   = 6      // of folders below a configured one that Search descends into
	maxVisited = 20_000 // entries that one Search examines
	maxDigests = 256    // digests remembered
	copyBuffer = 256 << 10
)

// source offers GGUF files of this machine.
//
// Any holder of a cluster token may ask for a model, while the files belong to the user that runs
// the hive. So only files below the configured folders can be named; links must not lead out of
// them. With allow_any every file that this user may read can be named, which is right on a
// personal machine. In both cases it accepts only GGUF files, and says about others only that they
// are not GGUF, so that the digest of a secret does not leak.
type source struct {
	version string

	mu       sync.Mutex // guards below
	paths    []string   // clean and absolute
	allowAny bool
	digests  map[fileKey]string
}

// fileKey distinguishes a file from a changed version of it.
type fileKey struct {
	path string
	size int64
	time time.Time
}

var _ catalog.Source = (*source)(nil)

func newSource(version string) *source {
	return &source{version: version, digests: map[fileKey]string{}}
}

// Info describes the source.
func (s *source) Info(context.Context) (sdk.Info, error) {
	return sdk.Info{Name: "file", Kind: sdk.KindCatalog, Version: s.version, Summary: "GGUF files that lie on the hive's own disk."}, nil
}

// Schema returns the settings: the folders and the permission.
func (s *source) Schema(context.Context) (sdk.Schema, error) {
	return sdk.Schema{Attributes: []sdk.Attribute{
		{
			Name: "paths", Type: "list(string)", Default: json.RawMessage(`[]`),
			Doc: "Absolute paths of folders whose GGUF files can be used: by bare name or as file:/path. Links out of them are not followed.",
		},
		{
			Name: "allow_any", Type: "bool", Default: json.RawMessage(`false`),
			Doc: "Allows everybody who may request models from this hive to name any GGUF file that the hive's user can read. Meant for personal machines.",
		},
	}}, nil
}

// Configure sets the folders. It only warns of a missing one: its disk may be plugged in later.
func (s *source) Configure(_ context.Context, config sdk.Config) (sdk.Diagnostics, error) {
	var v struct {
		Paths    []string `json:"paths"`
		AllowAny bool     `json:"allow_any"`
	}
	if len(config.JSON) > 0 {
		if err := json.Unmarshal(config.JSON, &v); err != nil {
			return nil, fmt.Errorf("config: %w", err)
		}
	}
	var d sdk.Diagnostics
	var paths []string
	for i, p := range v.Paths {
		complain := func(sev sdk.Severity, summary, format string, args ...any) {
			d = append(d, sdk.Diagnostic{Severity: sev, Summary: summary, Detail: fmt.Sprintf(format, args...), Path: []any{"paths", i}})
		}
		if !filepath.IsAbs(p) {
			complain(sdk.Error, "Not a whole path", "%q is relative to nothing. Write the folder's whole path, without ~ and beginning with a slash.", p)
			continue
		}
		info, err := os.Stat(p)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			complain(sdk.Warning, "No such folder", "%s is not there. Its models can be used as soon as it is.", p)
		case err != nil:
			complain(sdk.Warning, "Unusable folder", "%s cannot be looked at: %v. Give the hive's user the right to read it.", p, err)
		case !info.IsDir():
			complain(sdk.Error, "Not a folder", "%s is a file. Name the folder that it lies in.", p)
		}
		paths = append(paths, filepath.Clean(p))
	}
	if d.HasErrors() {
		return d, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paths, s.allowAny = paths, v.AllowAny
	return d, nil
}

func (s *source) config() (paths []string, allowAny bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.paths, s.allowAny
}

// part matches the name of a later piece of a split model, or of a projector, which is not a model
// by itself.
var part = regexp.MustCompile(`(?i)-\d{5}-of-\d{5}\.gguf$|^mmproj`)

// firstPart matches the name of the first piece, which represents all.
var firstPart = regexp.MustCompile(`(?i)-00001-of-\d{5}\.gguf$`)

// Search emits the GGUF files below the configured folders: exact names first, then by path.
func (s *source) Search(ctx context.Context, q catalog.Query, emit func(catalog.Item) error) error {
	if q.Kind != "" && q.Kind != catalog.KindModel {
		return nil
	}
	text := strings.ToLower(q.Text)
	var found []catalog.Item
	visited := 0
	paths, _ := s.config()
	for _, folder := range paths {
		root, err := os.OpenRoot(folder)
		if err != nil {
			continue // Configure has warned about it
		}
		err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
			visited++
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case visited > maxVisited:
				return fs.SkipAll
			case d == nil || err != nil && !d.IsDir():
				return nil
			case err != nil:
				return fs.SkipDir // an unreadable folder offers nothing
			case !utf8.ValidString(d.Name()): // no message can carry it
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			case d.IsDir():
				if name != "." && strings.HasPrefix(d.Name(), ".") || strings.Count(name, "/") >= maxDepth {
					return fs.SkipDir
				}
				return nil
			case !strings.EqualFold(filepath.Ext(name), ".gguf") || part.MatchString(d.Name()) && !firstPart.MatchString(d.Name()):
				return nil
			}
			whole := filepath.Join(folder, filepath.FromSlash(name))
			if !strings.Contains(strings.ToLower(whole), text) {
				return nil
			}
			// Also through a link that stays inside.
			if info, err := root.Stat(filepath.FromSlash(name)); err == nil && info.Mode().IsRegular() {
				item := catalog.Item{Ref: whole, Kind: catalog.KindModel, Summary: whole, SizeBytes: info.Size()}
				parts, name := partsOf(name)
				item.Name = filepath.Base(name)
				for _, p := range parts[1:] {
					if info, err := root.Stat(filepath.FromSlash(p)); err == nil {
						item.SizeBytes += info.Size()
					}
				}
				found = append(found, item)
			}
			return nil
		})
		_ = root.Close()
		if err != nil {
			return err
		}
	}
	slices.SortStableFunc(found, func(a, b catalog.Item) int {
		exact := func(i catalog.Item) int {
			if strings.EqualFold(i.Name, text) {
				return 0
			}
			return 1
		}
		return cmp.Or(exact(a)-exact(b), strings.Compare(a.Ref, b.Ref))
	})
	if q.Limit > 0 {
		found = found[:min(q.Limit, len(found))]
	}
	for _, i := range found {
		if err := emit(i); err != nil {
			return err
		}
	}
	return nil
}

// nameOf returns the usual name of a file's model.
func nameOf(path string) string {
	base := filepath.Base(path)
	if ext := filepath.Ext(base); strings.EqualFold(ext, ".gguf") {
		base = strings.TrimSuffix(base, ext)
	}
	return base
}

// partOf splits the name of a part of a split model: the text before its number, the number, and
// the count.
var partOf = regexp.MustCompile(`(?i)^(.+)-(\d{5})-of-(\d{5})(\.gguf)$`)

// partsOf returns the paths of all files of the model that path belongs to, in order, and the
// model's name. For a whole file that is only itself.
func partsOf(path string) (paths []string, name string) {
	m := partOf.FindStringSubmatch(filepath.Base(path))
	if m == nil {
		return []string{path}, nameOf(path)
	}
	no, _ := strconv.Atoi(m[2]) // five digits
	count, _ := strconv.Atoi(m[3])
	if no < 1 || no > count {
		return []string{path}, nameOf(path)
	}
	for i := range count {
		paths = append(paths, filepath.Join(filepath.Dir(path), fmt.Sprintf("%s-%05d-of-%s%s", m[1], i+1, m[3], m[4])))
	}
	return paths, m[1]
}

// Resolve reads the whole file: its digest is that of the bytes on the disk now. For a large model
// this takes as long as reading it. A part of a split model represents all of its parts, which must
// be in the same folder.
func (s *source) Resolve(ctx context.Context, ref string) (catalog.Manifest, error) {
	paths, name := partsOf(ref)
	m := catalog.Manifest{Name: name, Kind: catalog.KindModel}
	for _, p := range paths {
		file, err := s.describe(ctx, p)
		if err != nil {
			return catalog.Manifest{}, err
		}
		m.Files = append(m.Files, file)
	}
	m.Ref = m.Files[0].Ref
	for i := range m.Files {
		m.Files[i].Ref = m.Ref
	}
	return m, nil
}

func (s *source) describe(ctx context.Context, ref string) (catalog.File, error) {
	f, path, err := s.open(ref)
	if err != nil {
		return catalog.File{}, err
	}
	defer f.Close()
	digest, size, err := s.digest(ctx, f, path)
	if err != nil {
		return catalog.File{}, err
	}
	return catalog.File{Ref: path, Path: filepath.Base(path), SizeBytes: size, Digest: digest, Locator: path}, nil
}

func (s *source) digest(ctx context.Context, f *os.File, path string) (string, int64, error) {
	info, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	key := fileKey{path, info.Size(), info.ModTime()}
	s.mu.Lock()
	known, ok := s.digests[key]
	s.mu.Unlock()
	if ok {
		return known, info.Size(), nil
	}
	h := sha256.New()
	n, err := copyContext(ctx, h, io.NewSectionReader(f, 0, info.Size()))
	if err != nil {
		return "", 0, err
	}
	if n != info.Size() {
		return "", 0, fmt.Errorf("%s became shorter while it was read: %w", path, catalog.ErrUnavailable)
	}
	digest := "sha256:" + hex.EncodeToString(h.Sum(nil))
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.digests) >= maxDigests {
		clear(s.digests)
	}
	s.digests[key] = digest
	return digest, n, nil
}

// Fetch writes the file from offset on, if its size is unchanged.
func (s *source) Fetch(ctx context.Context, file catalog.File, offset int64, w io.Writer) error {
	f, path, err := s.open(file.Locator)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if file.SizeBytes > 0 && info.Size() != file.SizeBytes {
		return sdk.WithHint(fmt.Errorf("%s had %d bytes and has %d now: %w", path, file.SizeBytes, info.Size(), catalog.ErrIntegrity), "Wait until the file is complete, and try again.")
	}
	if offset < 0 || offset > info.Size() {
		return fmt.Errorf("%s has %d bytes and cannot be read from %d: %w", path, info.Size(), offset, catalog.ErrInvalid)
	}
	_, err = copyContext(ctx, w, io.NewSectionReader(f, offset, info.Size()-offset))
	return err
}

// open opens the file that a reference names, if it is permitted and a GGUF file.
func (s *source) open(ref string) (*os.File, string, error) {
	if !filepath.IsAbs(ref) {
		return nil, "", sdk.WithHint(fmt.Errorf("%q is not a whole path: %w", ref, catalog.ErrInvalid),
			"Write file: and the whole path of the file on the hive's machine, such as file:/models/name.gguf, without ~.")
	}
	path := filepath.Clean(ref)
	f, err := s.openPermitted(path)
	if err != nil {
		return nil, "", err
	}
	if err := checkGGUF(f, path); err != nil {
		_ = f.Close()
		return nil, "", err
	}
	return f, path, nil
}

// openPermitted opens path through the configured folder that contains it. A refusal does not
// depend on whether the file exists.
func (s *source) openPermitted(path string) (*os.File, error) {
	// Opening a pipe must not wait for its other end.
	const flags = os.O_RDONLY | syscall.O_NONBLOCK
	paths, allowAny := s.config()
	var lastErr error
	for _, folder := range paths {
		rel, err := filepath.Rel(folder, path)
		if err != nil || !filepath.IsLocal(rel) {
			continue
		}
		root, err := os.OpenRoot(folder)
		if err != nil {
			lastErr = openError(path, err)
			continue
		}
		f, err := root.OpenFile(rel, flags, 0)
		_ = root.Close()
		if err == nil {
			return f, nil
		}
		lastErr = openError(path, err)
	}
	if allowAny {
		f, err := os.OpenFile(path, flags, 0)
		if err != nil {
			return nil, openError(path, err)
		}
		return f, nil
	}
	if lastErr != nil {
		return nil, lastErr
	}
	return nil, sdk.WithHint(fmt.Errorf("%s does not lie in a folder of the catalog source file: %w", path, catalog.ErrForbidden),
		"Add its folder to the hive's configuration: catalog \"file\" { config { paths = [%q] } }", filepath.Dir(path))
}

func openError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return sdk.WithHint(fmt.Errorf("no file %s: %w", path, catalog.ErrNotFound), "The path is looked for on the hive's machine. Check it there.")
	case errors.Is(err, fs.ErrPermission):
		return sdk.WithHint(fmt.Errorf("%s may not be read: %w", path, catalog.ErrForbidden), "Give the user that runs the hive the right to read it.")
	}
	// Such as a link out of the folder.
	return sdk.WithHint(fmt.Errorf("%s cannot be opened: %w: %w", path, err, catalog.ErrForbidden), "A link must lead to a file of the same configured folder; add the folder that it leads to.")
}

func checkGGUF(f *os.File, path string) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	magic := make([]byte, 4)
	if info.Mode().IsRegular() {
		if _, err := f.ReadAt(magic, 0); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read %s: %w", path, err)
		}
	}
	if string(magic) != "GGUF" {
		return sdk.WithHint(fmt.Errorf("%s is not a GGUF file: %w", path, catalog.ErrInvalid), "Only models in the GGUF format can be used.")
	}
	return nil
}

// copyContext copies until the end or until ctx ends.
func copyContext(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	total := int64(0)
	buf := make([]byte, copyBuffer)
	for {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		n, err := r.Read(buf)
		if n > 0 {
			written, writeErr := w.Write(buf[:n])
			total += int64(written)
			if writeErr != nil {
				return total, writeErr
			}
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}
