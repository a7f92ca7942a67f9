package hive

import (
	"context"
	"io"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/download"
	"github.com/rbee-project/rbee/core/store"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
)

// Origins is how a hive fetches files from HTTP servers.
type Origins struct {
	Client      *origin.Client    // nil: HTTP is not used; catalog plugins fetch all bytes
	Connections int               // to one server, per file; 0: 1
	Limit       *download.Limiter // of all files together, including those that plugins fetch; nil: none
}

// supply returns the sources of a manifest's files: HTTP where the catalog source has given an
// address, and its plugin in any case. log is for the person who asked.
func (c *catalogs) supply(ref string, m catalog.Manifest, log func(format string, args ...any)) store.Supply {
	return store.SupplyFunc(func(f store.FileSpec) store.Sources {
		s := &fileSources{plugin: c.fetcher(ref), spec: f, origins: c.origins, log: log}
		for _, file := range m.Files {
			if file.Path == f.Path && file.Locator == f.Locator {
				s.file = file
			}
		}
		return s
	})
}

// fileSources yields the sources of one file: its HTTP server, then the catalog plugin.
type fileSources struct {
	plugin  store.Fetch
	spec    store.FileSpec
	file    catalog.File
	origins Origins
	log     func(format string, args ...any)
	asked   int
}

// Next returns the next source.
func (s *fileSources) Next(_ context.Context, failed error) (store.Source, error) {
	s.asked++
	if s.asked == 1 {
		if o := s.server(); o != nil {
			return o, nil
		}
		s.asked++
	}
	if s.asked > 2 || core.KindOf(failed) == core.Integrity {
		return nil, nil // another way would yield the same wrong bytes
	}
	if failed != nil {
		s.log("%v; its catalog source goes on", failed)
	}
	limited := func(ctx context.Context, f store.FileSpec, offset int64, w io.Writer) error {
		return s.plugin(ctx, f, offset, s.origins.Limit.Writer(ctx, w))
	}
	return store.Fetch(limited).Source("its catalog source", s.spec), nil
}

// server returns the file's HTTP server; nil: not known.
func (s *fileSources) server() store.Source {
	if s.file.URL == "" || s.origins.Client == nil {
		return nil
	}
	o, err := download.New(
		download.File{URL: s.file.URL, Header: s.file.Header, SizeBytes: s.spec.SizeBytes, Digested: s.spec.Digest != ""},
		download.Options{Client: s.origins.Client, Connections: s.origins.Connections, Limit: s.origins.Limit})
	if err != nil {
		s.log("%s: %v; its catalog source brings it", s.spec.Path, err)
		return nil
	}
	return o
}

var (
	_ store.Versioned = (*download.Origin)(nil)
	_ store.Sources   = (*fileSources)(nil)
)
