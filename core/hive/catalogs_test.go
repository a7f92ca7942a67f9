package hive

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/core/store"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// shop is a catalog plugin without a process.
type shop struct {
	sdk.Plugin
	items    []catalog.Item
	manifest catalog.Manifest
	err      error
	wait     time.Duration
	deaf     bool // does not answer at all
	done     chan struct{}
	once     sync.Once
}

func (s *shop) Search(ctx context.Context, _ catalog.Query, emit func(catalog.Item) error) error {
	select {
	case <-time.After(s.wait):
	case <-ctx.Done():
		return ctx.Err()
	}
	for _, it := range s.items {
		if err := emit(it); err != nil {
			return err
		}
	}
	return s.err
}

func (s *shop) Resolve(ctx context.Context, _ string) (catalog.Manifest, error) {
	select {
	case <-time.After(s.wait):
	case <-ctx.Done():
		return catalog.Manifest{}, ctx.Err()
	}
	return s.manifest, s.err
}

func (s *shop) Fetch(context.Context, catalog.File, int64, io.Writer) error { return s.err }
func (s *shop) Done() <-chan struct{}                                       { return s.done }
func (s *shop) Kill() error                                                 { return s.Close() }

func (s *shop) Ping(ctx context.Context) error {
	if !s.deaf {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (s *shop) Close() error { s.once.Do(func() { close(s.done) }); return nil }

// shops launches shops and counts.
type shops struct {
	mu       sync.Mutex
	offers   map[string]*shop // the shop launched for that name
	launched map[string][]*shop
	err      error
}

func (s *shops) launch(_ context.Context, spec pluginhost.Spec) (catalogProcess, error) {
	time.Sleep(100 * time.Millisecond) // fake time
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	o := s.offers[spec.Name]
	p := &shop{items: o.items, err: o.err, wait: o.wait, deaf: o.deaf, manifest: o.manifest, done: make(chan struct{})}
	s.launched[spec.Name] = append(s.launched[spec.Name], p)
	return p, nil
}

func selling(t *testing.T, offers map[string]*shop, names []string, test func(t *testing.T, c *catalogs, s *shops)) {
	synctest.Test(t, func(t *testing.T) {
		s := &shops{offers: offers, launched: map[string][]*shop{}}
		var specs []pluginhost.Spec
		for _, n := range names {
			specs = append(specs, pluginhost.Spec{Kind: sdk.KindCatalog, Name: n})
		}
		c := newCatalogs(specs, s.launch, hclog.NewNullLogger())
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { c.run(ctx) })
		test(t, c, s)
		cancel()
		wg.Wait()
		for _, list := range s.launched {
			for _, p := range list {
				must.True(t, isDone(p.done), must.Sprint("a plugin goes on"))
			}
		}
		_, err := c.search(t.Context(), catalog.Query{}, "")
		if len(names) > 0 {
			must.Eq(t, core.Unavailable, core.KindOf(err))
		}
	})
}

func TestCatalogIsLaunchedOnceAndClosedWhenIdle(t *testing.T) {
	t.Parallel()
	selling(t, map[string]*shop{"a": {}}, []string{"a"}, func(t *testing.T, c *catalogs, s *shops) {
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				_, err := c.search(t.Context(), catalog.Query{}, "")
				must.NoError(t, err)
			})
		}
		wg.Wait()
		must.Len(t, 1, s.launched["a"])
		// A plugin in use is never closed, however long that takes.
		must.NoError(t, c.use(t.Context(), c.list[0], func(context.Context, catalogProcess) error { time.Sleep(10 * time.Minute); return nil }))
		must.False(t, isDone(s.launched["a"][0].done))
		time.Sleep(50 * time.Second)
		must.False(t, isDone(s.launched["a"][0].done))
		time.Sleep(30 * time.Second)
		must.True(t, isDone(s.launched["a"][0].done))
		_, err := c.search(t.Context(), catalog.Query{}, "")
		must.NoError(t, err)
		must.Len(t, 2, s.launched["a"])
	})
}

func TestCrashedCatalogIsLaunchedAgain(t *testing.T) {
	t.Parallel()
	selling(t, map[string]*shop{"a": {}}, []string{"a"}, func(t *testing.T, c *catalogs, s *shops) {
		for range 2 {
			_, err := c.search(t.Context(), catalog.Query{}, "")
			must.NoError(t, err)
			must.NoError(t, s.launched["a"][len(s.launched["a"])-1].Close())
		}
		must.Len(t, 2, s.launched["a"])
		s.err = core.Errorf(core.Unavailable, "no such file")
		_, err := c.resolve(t.Context(), "a:x")
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.ErrorContains(t, err, "no such file")
		s.err = nil
		_, err = c.search(t.Context(), catalog.Query{}, "")
		must.NoError(t, err)
	})
}

func TestSearchOfSeveralSources(t *testing.T) {
	t.Parallel()
	offers := map[string]*shop{
		"a": {items: []catalog.Item{{Ref: "big", Name: "big"}}, wait: time.Second},
		"b": {err: errors.New("origin away")},
		"c": {items: []catalog.Item{{Ref: "x/big", Name: "big"}, {Ref: "small", Name: "small"}}},
		"d": {wait: time.Hour, items: []catalog.Item{{Ref: "late", Name: "late"}}},
	}
	selling(t, offers, []string{"a", "b", "c", "d"}, func(t *testing.T, c *catalogs, _ *shops) {
		start := time.Now()
		items, err := c.search(t.Context(), catalog.Query{}, "")
		must.NoError(t, err)
		must.LessEq(t, searchTimeout+time.Second, time.Since(start))
		var refs []string
		for _, it := range items {
			refs = append(refs, it.Ref)
		}
		must.Eq(t, []string{"a:big", "c:x/big", "c:small"}, refs)
		start = time.Now()
		items, err = c.search(t.Context(), catalog.Query{}, "a") // only a is asked: d would block
		must.NoError(t, err)
		must.Len(t, 1, items)
		must.Less(t, searchTimeout, time.Since(start))
		items, err = c.search(t.Context(), catalog.Query{Limit: 2}, "")
		must.NoError(t, err)
		must.Len(t, 2, items)
		ref, _, err := c.findModel(t.Context(), "big")
		must.NoError(t, err)
		must.Eq(t, "a:big", ref) // the first source wins
		ref, near, err := c.findModel(t.Context(), "bi")
		must.NoError(t, err)
		must.Eq(t, "", ref)
		must.SliceContains(t, near, "small")
	})
	selling(t, offers, []string{"b"}, func(t *testing.T, c *catalogs, _ *shops) {
		_, err := c.search(t.Context(), catalog.Query{}, "")
		must.ErrorContains(t, err, "origin away")
	})
}

func TestSplitReference(t *testing.T) {
	t.Parallel()
	c := newCatalogs([]pluginhost.Spec{{Name: "npm"}, {Name: "file"}}, nil, hclog.NewNullLogger())
	s, rest, err := c.split("npm:@scope/pkg@1.0:0")
	must.NoError(t, err)
	must.Eq(t, "npm", s.spec.Name)
	must.Eq(t, "@scope/pkg@1.0:0", rest)
	for ref, kind := range map[string]core.Kind{"https://host/model.gguf": core.NotFound, "": core.Invalid, "bare": core.Invalid, "npm:": core.Invalid, ":x": core.NotFound, "hf:org/repo": core.NotFound} {
		_, _, err := c.split(ref)
		must.Eq(t, kind, core.KindOf(err), must.Sprint(ref))
		must.StrContains(t, core.HintOf(err), "npm, file")
	}
}

func TestReferencesBySource(t *testing.T) {
	t.Parallel()
	c := newCatalogs([]pluginhost.Spec{{Name: "huggingface"}, {Name: "http"}, {Name: "npm"}}, nil, hclog.NewNullLogger())
	for ref, want := range map[string]struct{ source, own, exact string }{
		"hf:org/repo:Q8_0":             {"huggingface", "org/repo:Q8_0", "huggingface:org/repo:Q8_0"},
		"huggingface:org/repo":         {"huggingface", "org/repo", "huggingface:org/repo"},
		"https://host/m.gguf":          {"http", "https://host/m.gguf", "https://host/m.gguf"},
		"http://host:1/m.gguf#x":       {"http", "http://host:1/m.gguf#x", "http://host:1/m.gguf#x"},
		"http:https://host/m.gguf":     {"http", "https://host/m.gguf", "https://host/m.gguf"},
		"http:name":                    {"http", "name", "http:name"},
		"npm:https://host/is-not-ours": {"npm", "https://host/is-not-ours", "npm:https://host/is-not-ours"},
	} {
		s, own, err := c.split(ref)
		must.NoError(t, err)
		must.Eq(t, want.source, s.spec.Name, must.Sprint(ref))
		must.Eq(t, want.own, own)
		must.Eq(t, want.exact, s.ref(own))
		again, same, err := c.split(s.ref(own))
		must.NoError(t, err)
		must.Eq(t, s, again)
		must.Eq(t, own, same)
	}
	c = newCatalogs([]pluginhost.Spec{{Name: "huggingface"}, {Name: "hf"}}, nil, hclog.NewNullLogger())
	s, _, err := c.split("hf:org/repo")
	must.NoError(t, err)
	must.Eq(t, "hf", s.spec.Name)
}

// The part before a colon is a source, or belongs to the model's name.
func TestReference(t *testing.T) {
	t.Parallel()
	c := newCatalogs([]pluginhost.Spec{{Name: "huggingface"}, {Name: "file"}, {Name: "http"}}, nil, hclog.NewNullLogger())
	for name, want := range map[string]string{
		"tiny": "", "llama3:8b": "", "org/repo": "", "org/repo:Q4_K_M": "", "file": "", "file:": "",
		"hf:org/repo:Q4_K_M": "huggingface:org/repo:Q4_K_M", "hf.co/org/repo:Q4_K_M": "huggingface:org/repo:Q4_K_M", "https://huggingface.co/org/repo": "huggingface:org/repo",
		"https://huggingface.co/org/repo/resolve/main/m.gguf": "https://huggingface.co/org/repo/resolve/main/m.gguf",
		"file:/srv/m.gguf": "file:/srv/m.gguf", "file:m": "file:m", "gone:/srv/m.gguf": "gone:/srv/m.gguf", "https://h/m.gguf": "https://h/m.gguf",
	} {
		ref, ok := c.reference(name)
		must.EqOp(t, want != "", ok, must.Sprint(name))
		must.EqOp(t, want, ref, must.Sprint(name))
	}
}

func TestNewModelID(t *testing.T) {
	t.Parallel()
	have := []core.Model{{ID: "tiny", Ref: "file:/a/tiny.gguf", Digest: "sha256:1"}, {ID: "hf.co/o/r:Q4_0", Ref: "huggingface:o/r/r.gguf@1", Digest: "sha256:2"}}
	for _, c := range []struct{ exact, proposed, digest, want string }{
		{"file:/b/other.gguf", "other", "sha256:3", "other"},
		{"file:/a/tiny.gguf", "tiny", "sha256:3", "tiny"},                            // the same reference has new files
		{"file:/b/tiny.gguf", "tiny", "sha256:1", "tiny"},                            // the same files at another place
		{"file:/b/tiny.gguf", "tiny", "sha256:3", "file/b/tiny"},                     // another model with the same name
		{"file:/b/tiny.gguf", "tiny", "", "file/b/tiny"},                             // possibly another one
		{"huggingface:o/r/r.gguf@2", "hf.co/o/r:Q4_0", "sha256:3", "hf.co/o/r:Q4_0"}, // the store checks that
		{"x:y", "", "", "model"},
		{"x:y", "../../etc/passwd", "", "etc/passwd"},
	} {
		must.EqOp(t, c.want, newModelID(have, c.exact, c.proposed, []store.FileSpec{{Digest: c.digest}}), must.Sprintf("%+v", c))
	}
}
