package fake

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// Catalog is the fake catalog source: the files of one folder are its items, each a model named
// after its file without the extension. A subfolder is a model of the files in it, sorted by name.
// The reference "refused" is unauthenticated and "away" unavailable; "stuck" is a model whose
// transfer hangs after the first byte.
type Catalog struct {
	name string
	dir  string // set by Configure
}

var _ catalog.Source = (*Catalog)(nil)

// NewCatalog returns a fake catalog source with the given name.
func NewCatalog(name string) *Catalog { return &Catalog{name: name} }

// Info describes the fake.
func (c *Catalog) Info(context.Context) (sdk.Info, error) {
	return sdk.Info{Name: c.name, Kind: sdk.KindCatalog, Version: Version, Summary: "Offers the files of a folder, for tests."}, nil
}

// Schema has one setting, the folder.
func (c *Catalog) Schema(context.Context) (sdk.Schema, error) {
	return sdk.Schema{Attributes: []sdk.Attribute{{Name: "dir", Type: "string", Default: json.RawMessage(`""`), Doc: "The folder. Empty: the source has nothing."}}}, nil
}

// Configure sets the folder.
func (c *Catalog) Configure(_ context.Context, config sdk.Config) (sdk.Diagnostics, error) {
	var v struct {
		Dir string `json:"dir"`
	}
	if err := json.Unmarshal(config.JSON, &v); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if v.Dir != "" {
		info, err := os.Stat(v.Dir)
		if found := err == nil && info.IsDir(); !found {
			return sdk.Diagnostics{{Summary: "No such folder", Detail: fmt.Sprintf("%q is not a folder. Make it, or name another.", v.Dir), Path: []any{"dir"}}}, nil
		}
	}
	c.dir = v.Dir
	return nil, nil
}

func (c *Catalog) open() (*os.Root, error) {
	if c.dir == "" {
		return nil, fmt.Errorf("no folder is configured: %w", catalog.ErrNotFound)
	}
	root, err := os.OpenRoot(c.dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, catalog.ErrUnavailable)
	}
	return root, nil
}

// Search emits the files whose names contain the text.
func (c *Catalog) Search(_ context.Context, q catalog.Query, emit func(catalog.Item) error) error {
	if c.dir == "" || (q.Kind != "" && q.Kind != catalog.KindModel) {
		return nil
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return fmt.Errorf("%w: %w", err, catalog.ErrUnavailable)
	}
	n := 0
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || !strings.Contains(e.Name(), q.Text) {
			continue
		}
		if q.Limit > 0 && n == q.Limit {
			return nil
		}
		n++
		name := strings.TrimSuffix(e.Name(), path.Ext(e.Name()))
		if err := emit(catalog.Item{Ref: e.Name(), Kind: catalog.KindModel, Name: name, Summary: "A file of a test.", SizeBytes: info.Size(), License: "Apache-2.0"}); err != nil {
			return err
		}
	}
	return nil
}

// Resolve finds one file and computes its digest.
func (c *Catalog) Resolve(_ context.Context, ref string) (catalog.Manifest, error) {
	switch ref {
	case "refused":
		return catalog.Manifest{}, sdk.WithHint(fmt.Errorf("%s: %w", ref, catalog.ErrUnauthenticated), "Set token in the config block.")
	case "away":
		return catalog.Manifest{}, fmt.Errorf("%s: %w", ref, catalog.ErrUnavailable)
	case "":
		return catalog.Manifest{}, fmt.Errorf("empty reference: %w", catalog.ErrInvalid)
	case stuck:
		digest := "sha256:" + strings.Repeat("0", 64)
		return catalog.Manifest{Ref: ref, Name: ref, Kind: catalog.KindModel, Files: []catalog.File{{Ref: ref, Path: "stuck.gguf", SizeBytes: 1000, Digest: digest, Locator: ref}}}, nil
	}
	if files, err := c.folder(ref); err != nil || files != nil {
		return catalog.Manifest{Ref: ref, Name: ref, Kind: catalog.KindModel, Files: files, Notes: []string{fmt.Sprintf("%s has %d files", ref, len(files))}}, err
	}
	file, err := c.describe(ref, ref)
	if err != nil {
		return catalog.Manifest{}, err
	}
	name := strings.TrimSuffix(ref, path.Ext(ref))
	return catalog.Manifest{Ref: ref, Name: name, Kind: catalog.KindModel, Version: "1", License: "Apache-2.0", Files: []catalog.File{file}}, nil
}

// stuck is the reference of a model whose transfer never completes.
const stuck = "stuck"

// folder describes the files of a folder; none if ref is not a folder.
func (c *Catalog) folder(ref string) ([]catalog.File, error) {
	root, err := c.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if info, err := root.Stat(ref); err != nil || !info.IsDir() {
		return nil, nil // the caller then looks for a file of this name
	}
	entries, err := fs.ReadDir(root.FS(), ref)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, catalog.ErrUnavailable)
	}
	var files []catalog.File
	for _, e := range entries {
		f, err := c.describe(ref, ref+"/"+e.Name())
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// describe returns a file with its computed digest.
func (c *Catalog) describe(ref, name string) (catalog.File, error) {
	f, err := c.file(name)
	if err != nil {
		return catalog.File{}, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return catalog.File{}, err
	}
	return catalog.File{Ref: ref, Path: name, SizeBytes: n, Digest: "sha256:" + hex.EncodeToString(h.Sum(nil)), Locator: name}, nil
}

func (c *Catalog) file(ref string) (*os.File, error) {
	root, err := c.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(ref)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", ref, catalog.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, catalog.ErrInvalid)
	}
	return f, nil
}

// Fetch writes the file from offset to its end.
func (c *Catalog) Fetch(ctx context.Context, file catalog.File, offset int64, w io.Writer) error {
	if file.Locator == stuck {
		<-ctx.Done()
		return ctx.Err()
	}
	f, err := c.file(file.Locator)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return fmt.Errorf("%w: %w", err, catalog.ErrInvalid)
	}
	_, err = io.Copy(w, f)
	return err
}
