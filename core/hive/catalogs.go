package hive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/modelname"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/core/store"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

const (
	catalogIdle   = time.Minute
	searchTimeout = 3 * time.Second // of one source; well below the patience of the asking queen, which would otherwise get nothing
)

// catalogs runs catalog plugins: it starts them on demand and ends those that stay unused for a
// while.
type catalogs struct {
	launch  func(ctx context.Context, s pluginhost.Spec) (catalogProcess, error)
	log     hclog.Logger
	origins Origins

	mu   sync.Mutex // guards below
	list []*source  // replaced, never changed
	old  []*source  // replaced ones that may still run
}

type source struct {
	spec pluginhost.Spec
	gate chan struct{} // capacity one: its holder may start or end the process and use the fields below

	proc      catalogProcess // nil: not running
	users     int
	idleSince time.Time
	closed    bool
	failures  int       // consecutive exits that nobody asked for
	notBefore time.Time // of the next start
}

func newCatalogs(specs []pluginhost.Spec, launch func(context.Context, pluginhost.Spec) (catalogProcess, error), log hclog.Logger) *catalogs {
	c := &catalogs{launch: launch, log: log}
	c.replace(specs)
	return c
}

// replace sets new sources. Calls that use an old one keep it until they end.
func (c *catalogs) replace(specs []pluginhost.Spec) {
	var list []*source
	for _, s := range specs {
		list = append(list, &source{spec: s, gate: make(chan struct{}, 1)})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.old, c.list = append(c.old, c.list...), list
}

// add appends further sources, and reports whether any were new.
func (c *catalogs) add(specs []pluginhost.Spec) (added bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range specs {
		if !slices.ContainsFunc(c.list, func(o *source) bool { return o.spec.Name == s.Name }) {
			c.list = append(slices.Clone(c.list), &source{spec: s, gate: make(chan struct{}, 1)})
			added = true
		}
	}
	return added
}

// has reports whether a source has the name.
func (c *catalogs) has(name string) bool {
	return slices.ContainsFunc(c.sources(), func(s *source) bool { return s.spec.Name == name })
}

func (c *catalogs) sources() []*source {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.list
}

func (s *source) lock(ctx context.Context) error {
	select {
	case s.gate <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", "use catalog source "+s.spec.Name, core.FromContext(ctx))
	}
}

func (s *source) unlock() { <-s.gate }

// split splits a reference into its source and the rest. Errors: Invalid for a reference without a
// source, NotFound for one of an unknown source.
func (c *catalogs) split(ref string) (*source, string, error) {
	name, rest, found := strings.Cut(ref, ":")
	if !found || rest == "" {
		return nil, "", core.Errorf(core.Invalid, "read reference: %q names no catalog source", ref).Hint("%s", c.hint())
	}
	if isURL(ref) {
		name, rest = urlSource, ref
	}
	for _, name := range []string{name, shortNames()[name]} {
		for _, s := range c.sources() {
			if s.spec.Name == name {
				return s, rest, nil
			}
		}
	}
	return nil, "", core.Errorf(core.NotFound, "read reference: there is no catalog source %q", name).Hint("%s", c.hint())
}

// reference returns the catalog reference that a name stands for, or "" and false if the part
// before its colon is not a source, as in "llama3:8b".
func (c *catalogs) reference(name string) (ref string, ok bool) {
	if repo, ok := modelname.Repository(name); ok && c.has(hubSource) {
		return hubSource + ":" + repo, true
	}
	if isURL(name) {
		return name, true
	}
	source, rest, ok := strings.Cut(name, ":")
	if !ok || rest == "" || strings.Contains(source, "/") {
		return "", false
	}
	if full := shortNames()[source]; full != "" || c.has(source) {
		return name, true
	}
	if modelname.Valid(name) {
		return "", false // "llama3:8b"
	}
	return name, true // "file:/x", of a source that this hive lacks
}

// hubSource is the source of names such as "hf.co/org/repo".
const hubSource = "huggingface"

// urlSource is the source that bare addresses go to, which are references without its name.
const urlSource = "http"

func isURL(ref string) bool {
	return strings.HasPrefix(ref, "https://") || strings.HasPrefix(ref, "http://")
}

// shortNames maps common short names to sources. A source that really has such a name takes
// precedence.
func shortNames() map[string]string { return map[string]string{"hf": "huggingface"} }

// ref returns a source's own reference in its global form.
func (s *source) ref(own string) string {
	if s.spec.Name == urlSource && isURL(own) {
		return own
	}
	return s.spec.Name + ":" + own
}

func (c *catalogs) hint() string {
	list := c.sources()
	if len(list) == 0 {
		return "This hive has no catalog source: put catalog plugins (rbee-catalog-…) into the plugin folder and restart the agent."
	}
	names := make([]string, 0, len(list))
	for _, s := range list {
		names = append(names, s.spec.Name)
	}
	return "A reference is written SOURCE:NAME; the sources of this hive are " + strings.Join(names, ", ") + "."
}

// use calls f with the running plugin of a source, which it starts if necessary and keeps running
// at least until f returns.
func (c *catalogs) use(ctx context.Context, s *source, f func(context.Context, catalogProcess) error) (err error) {
	if err := s.lock(ctx); err != nil {
		return err
	}
	p, err := c.runningLocked(ctx, s)
	s.unlock()
	if err != nil {
		return err
	}
	defer func() {
		s.gate <- struct{}{} // never held longer than a start takes
		s.users--
		s.idleSince = time.Now()
		if err == nil {
			s.failures = 0
		}
		s.unlock()
	}()
	return c.watched(ctx, s, p, func(ctx context.Context) error { return f(ctx, p) })
}

func (c *catalogs) runningLocked(ctx context.Context, s *source) (catalogProcess, error) {
	if s.closed {
		return nil, core.Errorf(core.Unavailable, "%s: the hive is shutting down", "use catalog source "+s.spec.Name)
	}
	if s.proc != nil {
		select {
		case <-s.proc.Done():
			s.failures++
			s.notBefore = time.Now().Add(rest(s.failures))
			c.log.Warn("a catalog plugin ended by itself", "plugin", s.spec.Name, "failures", s.failures, "rest", rest(s.failures))
			c.closeLocked(s)
		default:
		}
	}
	if s.proc == nil {
		if err := s.resting(time.Now()); err != nil {
			return nil, err
		}
		p, err := c.launch(ctx, s.spec)
		if err != nil {
			return nil, said("launch catalog source "+s.spec.Name, err)
		}
		s.proc = p
	}
	s.users++
	return s.proc, nil
}

// resolve asks which files a reference stands for.
func (c *catalogs) resolve(ctx context.Context, ref string) (m catalog.Manifest, err error) {
	s, rest, err := c.split(ref)
	if err != nil {
		return m, err
	}
	err = c.use(ctx, s, func(ctx context.Context, p catalogProcess) (err error) {
		bounded, cancel := context.WithTimeout(ctx, resolveTimeout)
		defer cancel()
		m, err = p.Resolve(bounded, rest)
		if bounded.Err() != nil && ctx.Err() == nil && err != nil {
			err = core.Errorf(core.Unavailable, "catalog source %s has no answer within %s", s.spec.Name, resolveTimeout)
		}
		return said("resolve "+ref, err)
	})
	if err == nil {
		if bad := checkManifest(m); bad != nil {
			err = core.Errorf(core.Internal, "%s: catalog source %s gives an answer that is of no use: %w", "resolve "+ref, s.spec.Name, bad).Hint("Report this to the author of the plugin.")
		}
	}
	if err != nil {
		return catalog.Manifest{}, err
	}
	return m, nil
}

// fetcher returns a function that fetches the files of a reference. It holds the plugin separately
// for each file: a transfer may outlive the job that began it.
func (c *catalogs) fetcher(ref string) store.Fetch {
	return func(ctx context.Context, f store.FileSpec, offset int64, w io.Writer) error {
		s, _, err := c.split(ref)
		if err != nil {
			return err
		}
		return c.use(ctx, s, func(ctx context.Context, p catalogProcess) error {
			err := copying(ctx, w, func(ctx context.Context, w io.Writer) error {
				return p.Fetch(ctx, catalog.File{Ref: f.Ref, Path: f.Path, SizeBytes: f.SizeBytes, Digest: f.Digest, Locator: f.Locator}, offset, w)
			})
			return said("fetch "+f.Path, err)
		})
	}
}

// search asks all sources at once, or only the named one, and returns their items in the order of
// the sources. Sources that fail are left out unless all do.
func (c *catalogs) search(ctx context.Context, q catalog.Query, only string) ([]core.CatalogItem, error) {
	asked := slices.DeleteFunc(slices.Clone(c.sources()), func(s *source) bool { return only != "" && s.spec.Name != only })
	found := make([][]core.CatalogItem, len(asked))
	errs := make([]error, len(asked))
	var wg sync.WaitGroup
	for i, s := range asked {
		wg.Go(func() {
			// The launch has its own limit, so that a busy machine does not lose a source.
			errs[i] = c.use(ctx, s, func(ctx context.Context, p catalogProcess) error {
				ctx, cancel := context.WithTimeout(ctx, searchTimeout)
				defer cancel()
				err := p.Search(ctx, q, func(it catalog.Item) error {
					if len(found[i]) == maxItems {
						return errEnough
					}
					if !fitting(it) {
						return nil
					}
					found[i] = append(found[i], core.CatalogItem{
						Ref: s.ref(it.Ref), Kind: string(it.Kind), Name: it.Name, Summary: it.Summary, SizeBytes: it.SizeBytes, License: it.License,
					})
					return nil
				})
				if errors.Is(err, errEnough) {
					err = nil
				}
				return said("search catalog source "+s.spec.Name, err)
			})
		})
	}
	wg.Wait()
	var out []core.CatalogItem
	var failed error
	failures := 0
	for i, s := range asked {
		out = append(out, found[i]...)
		if errs[i] != nil {
			failed = errs[i]
			failures++
			c.log.Debug("a catalog source cannot be searched", "plugin", s.spec.Name, "error", errs[i])
		}
	}
	if failures > 0 && failures == len(asked) {
		return nil, failed
	}
	if q.Limit > 0 && len(out) > q.Limit {
		out = out[:q.Limit]
	}
	return out, nil
}

// findModel looks for a model of exactly this name and returns its reference, and the names of
// similar models.
func (c *catalogs) findModel(ctx context.Context, name string) (ref string, near []string, err error) {
	items, err := c.search(ctx, catalog.Query{Text: name, Kind: catalog.KindModel, Exact: true}, "")
	if err != nil {
		return "", nil, err
	}
	for _, it := range items {
		if it.Name == name {
			return it.Ref, nil, nil
		}
		near = append(near, it.Name)
	}
	return "", near, nil
}

// run ends unused plugins, and all of them when ctx ends.
func (c *catalogs) run(ctx context.Context) {
	tick := time.NewTicker(catalogIdle / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			c.sweep(false)
		case <-ctx.Done():
			c.sweep(true)
			return
		}
	}
}

func (c *catalogs) sweep(all bool) {
	c.mu.Lock()
	list, old := c.list, c.old
	c.old = nil
	c.mu.Unlock()
	for _, s := range list {
		s.gate <- struct{}{} // never held longer than a start takes
		s.closed = s.closed || all
		if s.proc != nil && (all || s.users == 0 && time.Since(s.idleSince) >= catalogIdle) {
			c.closeLocked(s)
		}
		s.unlock()
	}
	var used []*source
	for _, s := range old {
		s.gate <- struct{}{}
		s.closed = s.closed || all
		switch {
		case s.proc != nil && (all || s.users == 0):
			c.closeLocked(s)
		case s.proc != nil:
			used = append(used, s)
		}
		s.unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.old = append(c.old, used...)
}

func (c *catalogs) closeLocked(s *source) {
	if err := s.proc.Close(); err != nil {
		c.log.Warn("end a catalog plugin", "plugin", s.spec.Name, "error", err)
	}
	s.proc = nil
}
