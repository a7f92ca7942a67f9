// Package simple builds a complete catalog source from a list and a function that opens files.
package simple

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// Source is a catalog source.
type Source struct {
	// Info needs Name, Version and Summary. Kind and the capability "url" are filled in.
	Info sdk.Info
	// List returns the source's models. References must be exact: a Manifest's Ref stands for the
	// same files each time. A Manifest may omit Kind (a model), Name (its Ref), and the Ref of its
	// files.
	List func(ctx context.Context) ([]catalog.Manifest, error)
	// Open returns a file's bytes from its beginning. If the reader can seek, Fetch seeks to an
	// offset instead of reading up to it. Open may be nil if every file has a URL: the host then
	// fetches the files itself.
	Open func(ctx context.Context, f catalog.File) (io.ReadCloser, error)
	// Schema describes the source's config block. Configure receives it as JSON, decoded and with
	// defaults filled in; nil accepts any configuration.
	Schema    sdk.Schema
	Configure func(ctx context.Context, config sdk.Config) (sdk.Diagnostics, error)
}

// Serve runs s as the plugin of this process: see catalog.Serve.
func Serve(s Source) { catalog.Serve(s.Source()) }

// Source returns s as a catalog.Source, for Serve and for tests.
func (s Source) Source() catalog.Source { return source{s} }

type source struct{ s Source }

func (p source) Info(context.Context) (sdk.Info, error) {
	info := p.s.Info
	info.Kind = sdk.KindCatalog
	if !slices.Contains(info.Capabilities, catalog.CapabilityURL) {
		info.Capabilities = append(slices.Clone(info.Capabilities), catalog.CapabilityURL)
		slices.Sort(info.Capabilities)
	}
	return info, nil
}

func (p source) Schema(context.Context) (sdk.Schema, error) { return p.s.Schema, nil }

func (p source) Configure(ctx context.Context, c sdk.Config) (sdk.Diagnostics, error) {
	if p.s.Configure == nil {
		return nil, nil
	}
	return p.s.Configure(ctx, c)
}

// list returns the manifests with their omitted fields filled in.
func (p source) list(ctx context.Context) ([]catalog.Manifest, error) {
	all, err := p.s.List(ctx)
	if err != nil {
		return nil, err
	}
	all = slices.Clone(all)
	for i := range all {
		m := &all[i]
		if m.Kind == "" {
			m.Kind = catalog.KindModel
		}
		if m.Name == "" {
			m.Name = m.Ref
		}
		m.Files = slices.Clone(m.Files)
		for k := range m.Files {
			m.Files[k].Ref = m.Ref
		}
	}
	return all, nil
}

// Search emits the items whose reference or name contains the text, exact matches first.
func (p source) Search(ctx context.Context, q catalog.Query, emit func(catalog.Item) error) error {
	all, err := p.list(ctx)
	if err != nil {
		return err
	}
	text := strings.ToLower(q.Text)
	is := func(m catalog.Manifest) bool {
		return strings.ToLower(m.Ref) == text || strings.ToLower(m.Name) == text
	}
	all = slices.DeleteFunc(all, func(m catalog.Manifest) bool {
		has := strings.Contains(strings.ToLower(m.Ref), text) || strings.Contains(strings.ToLower(m.Name), text)
		return q.Kind != "" && m.Kind != q.Kind || !has || q.Exact && !is(m)
	})
	slices.SortStableFunc(all, func(a, b catalog.Manifest) int {
		switch {
		case is(a) == is(b):
			return 0
		case is(a):
			return -1
		}
		return 1
	})
	if q.Limit > 0 {
		all = all[:min(len(all), q.Limit)]
	}
	for _, m := range all {
		item := catalog.Item{Ref: m.Ref, Kind: m.Kind, Name: m.Name, License: m.License}
		for _, f := range m.Files {
			item.SizeBytes += f.SizeBytes
		}
		if err := emit(item); err != nil {
			return err
		}
	}
	return nil
}

func (p source) Resolve(ctx context.Context, ref string) (catalog.Manifest, error) {
	all, err := p.list(ctx)
	if err != nil {
		return catalog.Manifest{}, err
	}
	if i := slices.IndexFunc(all, func(m catalog.Manifest) bool { return m.Ref == ref }); i >= 0 {
		return all[i], nil
	}
	return catalog.Manifest{}, fmt.Errorf("there is no %q: %w", ref, catalog.ErrNotFound)
}

// Fetch writes the bytes of one of the source's files.
func (p source) Fetch(ctx context.Context, f catalog.File, offset int64, w io.Writer) error {
	m, err := p.Resolve(ctx, f.Ref)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(m.Files, func(o catalog.File) bool { return o.Path == f.Path })
	if i < 0 {
		return fmt.Errorf("%s has no file %q: %w", f.Ref, f.Path, catalog.ErrNotFound)
	}
	if p.s.Open == nil {
		return fmt.Errorf("the host fetches %q from its URL: %w", f.Path, catalog.ErrUnsupported)
	}
	r, err := p.s.Open(ctx, m.Files[i])
	if err != nil {
		return err
	}
	defer r.Close()
	if s, ok := r.(io.Seeker); ok {
		_, err = s.Seek(offset, io.SeekStart)
	} else {
		_, err = io.CopyN(io.Discard, reader{ctx, r}, offset)
	}
	if err != nil {
		return fmt.Errorf("file %q from byte %d: %w: %w", f.Path, offset, err, catalog.ErrInvalid)
	}
	_, err = io.Copy(w, reader{ctx, r})
	return err
}

// reader stops reading when its context ends.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}
