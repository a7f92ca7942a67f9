// Package sdktest is the conformance suite of plugins: what a host relies on, checked against an
// implementation in this process or against an executable.
//
// A worker's test is a few lines:
//
//	func TestWorker(t *testing.T) {
//		target := sdktest.WorkerInProcess(func() worker.Backend { return mine.New() })
//		sdktest.Worker(t, target, sdktest.WorkerOptions{ModelPath: "testdata/tiny.gguf", Device: "cpu"})
//	}
package sdktest

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// patience is how long a plugin may take for what should be immediate.
const patience = 10 * time.Second

// startTime is how long a plugin may take to print the handshake line, the same as with a host.
const startTime = 20 * time.Second

// inProcess serves register over a connection in memory.
func inProcess(t testing.TB, register func(*grpc.Server)) *grpc.ClientConn {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	s := grpc.NewServer()
	register(s)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = s.Serve(l) // returns on Stop
	}()
	conn, err := grpc.NewClient("passthrough:plugin", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		s.Stop()
		<-served
	})
	return conn
}

// privateDir returns a folder that only its owner can enter, with a path short enough for sockets.
func privateDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sdk") //nolint:usetesting // t.TempDir has the test's name in its path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func logger(t testing.TB) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Name: "plugin", Level: hclog.Debug, Output: t.Output()})
}

// config holds the defaults and required settings of an empty config block.
type config struct {
	defaults map[string]json.RawMessage
	required []string // settings without a default
}

// with returns the defaults overridden by the members of over.
func (c config) with(over json.RawMessage) json.RawMessage {
	all := maps.Clone(c.defaults)
	if len(over) > 0 && json.Unmarshal(over, &all) != nil {
		return over // the plugin must reject it
	}
	text, err := json.Marshal(all)
	if err != nil {
		return over
	}
	return text
}

// missing returns the required settings that over lacks.
func (c config) missing(over json.RawMessage) []string {
	given := map[string]json.RawMessage{}
	_ = json.Unmarshal(over, &given) // a value that is not an object has no members
	return slices.DeleteFunc(slices.Clone(c.required), func(name string) bool { return given[name] != nil })
}

// skipWithout skips the test if required settings are missing.
func skipWithout(t testing.TB, missing []string) {
	t.Helper()
	if len(missing) > 0 {
		t.Skipf("the plugin needs settings: %s; give them with --plugin-config, or Config in a test", strings.Join(missing, ", "))
	}
}

// plugin checks what every plugin must do, and returns the defaults and required settings of its
// schema. fresh returns an unconfigured plugin.
func plugin(t *testing.T, kind sdk.Kind, fresh func(t testing.TB) sdk.Plugin, good, bad json.RawMessage) config {
	var c config
	t.Run("info", func(t *testing.T) {
		p := fresh(t)
		first, err := p.Info(t.Context())
		if err != nil {
			brokenNow(t, "info-stable", "Info: %v", err)
		}
		second, err := p.Info(t.Context())
		if err != nil || !reflect.DeepEqual(first, second) {
			broken(t, "info-stable", "Info answers differently the second time: %+v, then %+v (%v)", first, second, err)
		}
		if first.Kind != kind {
			broken(t, "info-kind", "Info.Kind is %q, want %q", first.Kind, kind)
		}
		if !regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`).MatchString(first.Name) {
			broken(t, "info-name", "Info.Name is %q: lower-case letters, digits, dashes and underscores, at most 64", first.Name)
		}
		if first.Version == "" || strings.HasPrefix(first.Version, "v") {
			broken(t, "info-version", "Info.Version is %q: it must be there, without a leading v", first.Version)
		}
		if first.Summary == "" || strings.Contains(first.Summary, "\n") {
			broken(t, "info-summary", "Info.Summary is %q: it must be one line", first.Summary)
		}
		if !slices.IsSorted(first.Capabilities) {
			broken(t, "info-capabilities", "Info.Capabilities %q are not sorted", first.Capabilities)
		}
		for _, e := range append([]sdk.Engine{first.Engine}, first.OtherEngines...) {
			if e.Name != "" && (e.Ref == "" || e.Version == "") {
				broken(t, "info-engine", "the engine %+v in Info has no reference or no version", e)
			}
		}
	})
	t.Run("schema", func(t *testing.T) {
		p := fresh(t)
		first, err := p.Schema(t.Context())
		if err != nil {
			brokenNow(t, "schema-stable", "Schema: %v", err)
		}
		second, err := p.Schema(t.Context())
		if err != nil || !reflect.DeepEqual(first, second) {
			broken(t, "schema-stable", "Schema answers differently the second time (%v)", err)
		}
		checkSchema(t, "", first)
		c = configOf(first)
		if len(c.required) > 0 {
			return // the defaults alone are not a complete configuration
		}
		defaults := c.with(nil)
		diags, err := p.Configure(t.Context(), sdk.Config{JSON: defaults})
		if err != nil || diags.HasErrors() {
			broken(t, "configure-defaults", "Configure refuses the schema's own defaults %s: %v %v", defaults, diags, err)
		}
	})
	t.Run("configure", func(t *testing.T) {
		skipWithout(t, c.missing(good))
		p := fresh(t)
		good := c.with(good)
		diags, err := p.Configure(t.Context(), sdk.Config{JSON: good})
		if err != nil || diags.HasErrors() {
			broken(t, "configure-defaults", "Configure refuses %s: %v %v", good, diags, err)
		}
		if bad == nil {
			return
		}
		p, bad = fresh(t), c.with(bad)
		diags, err = p.Configure(t.Context(), sdk.Config{JSON: bad})
		if err != nil {
			broken(t, "configure-diagnostics", "Configure of %s: error %v: what the user did wrong is a diagnostic", bad, err)
		}
		if !diags.HasErrors() {
			broken(t, "configure-diagnostics", "Configure takes %s", bad)
		}
		for _, d := range diags {
			if d.Summary == "" || d.Detail == "" {
				broken(t, "configure-diagnostics", "diagnostic %+v has no summary or no detail", d)
			}
			if len(d.Path) == 0 {
				broken(t, "configure-diagnostics", "diagnostic %q has no path: the user is not shown which line is meant", d.Summary)
			}
		}
	})
	return c
}

func checkSchema(t *testing.T, at string, s sdk.Schema) {
	t.Helper()
	seen := map[string]bool{}
	name := func(n string) {
		if !regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*$`).MatchString(n) {
			broken(t, "schema-names", "schema: invalid name %q", at+n)
		}
		if seen[n] {
			broken(t, "schema-names", "schema: duplicate name %s", at+n)
		}
		seen[n] = true
	}
	for _, a := range s.Attributes {
		name(a.Name)
		if a.Type == "" {
			broken(t, "schema-names", "schema: %s has no type", at+a.Name)
		}
		if a.Doc == "" {
			broken(t, "schema-docs", "schema: %s has no documentation", at+a.Name)
		}
		if len(a.Default) > 0 && !json.Valid(a.Default) {
			broken(t, "schema-defaults", "schema: the default of %s is not JSON: %s", at+a.Name, a.Default)
		}
		if len(a.Default) > 0 && a.Required {
			broken(t, "schema-defaults", "schema: %s is required and has a default", at+a.Name)
		}
	}
	for _, b := range s.Blocks {
		name(b.Name)
		if b.Doc == "" {
			broken(t, "schema-docs", "schema: the block %s has no documentation", at+b.Name)
		}
		checkSchema(t, at+b.Name+".", b.Schema)
	}
}

// configOf returns the defaults and required settings of a schema.
func configOf(s sdk.Schema) config {
	c := config{defaults: map[string]json.RawMessage{}}
	for _, a := range s.Attributes {
		if a.Required {
			c.required = append(c.required, a.Name)
		}
		c.defaults[a.Name] = json.RawMessage("null")
		if len(a.Default) > 0 {
			c.defaults[a.Name] = a.Default
		}
	}
	for _, b := range s.Blocks {
		if b.Required {
			c.required = append(c.required, b.Name)
		}
		c.defaults[b.Name] = json.RawMessage("null")
		if b.Repeated {
			c.defaults[b.Name] = json.RawMessage("[]")
		}
	}
	return c
}

// CatalogTarget is a catalog source to test. Each call of Launch returns a new, unconfigured one.
type CatalogTarget struct {
	Launch func(t testing.TB) catalog.Source
}

// CatalogInProcess tests an implementation in this process, over the wire protocol.
func CatalogInProcess(source func() catalog.Source) CatalogTarget {
	return CatalogTarget{Launch: func(t testing.TB) catalog.Source {
		return catalog.NewClient(inProcess(t, func(s *grpc.Server) { catalog.Register(s, source()) }))
	}}
}

// CatalogBinary tests an executable. env is appended to a small environment: NAME=value.
func CatalogBinary(path string, env ...string) CatalogTarget {
	return CatalogTarget{Launch: func(t testing.TB) catalog.Source { return catalog.NewClient(start(t, sdk.KindCatalog, path, env).conn) }}
}

// CatalogOptions describe what the source under test can find.
type CatalogOptions struct {
	// passed to Configure, on top of the schema's defaults; nil: the defaults
	Config    json.RawMessage
	BadConfig json.RawMessage // likewise; must be rejected with a path; nil: not tested
	// an existing reference, small enough to be fetched several times; empty: resolving and
	// fetching are not tested
	Ref   string
	NoRef string // well-formed, but does not exist; empty: not tested
	Query string // must find at least one item; empty: everything
	// Unsearchable means that Search may find nothing.
	Unsearchable bool
	// AllowAddresses is passed to Configure: a test's servers run on this machine.
	AllowAddresses []string
}

// Catalog runs the suite.
func Catalog(t *testing.T, target CatalogTarget, o CatalogOptions) {
	c := plugin(t, sdk.KindCatalog, func(t testing.TB) sdk.Plugin { return target.Launch(t) }, o.Config, o.BadConfig)
	missing := c.missing(o.Config)
	o.Config = c.with(o.Config)
	ready := func(t testing.TB) catalog.Source {
		t.Helper()
		skipWithout(t, missing)
		s := target.Launch(t)
		diags, err := s.Configure(t.Context(), sdk.Config{JSON: o.Config, AllowAddresses: o.AllowAddresses})
		if err != nil || diags.HasErrors() {
			brokenNow(t, "configure-defaults", "Configure: %v %v", diags, err)
		}
		return s
	}
	t.Run("search", func(t *testing.T) { catalogSearch(t, ready(t), o) })
	if o.NoRef != "" {
		t.Run("not found", func(t *testing.T) {
			if _, err := ready(t).Resolve(t.Context(), o.NoRef); !errors.Is(err, catalog.ErrNotFound) {
				broken(t, "resolve-missing", "Resolve(%q): %v, want ErrNotFound", o.NoRef, err)
			}
		})
	}
	if o.Ref != "" {
		t.Run("resolve", func(t *testing.T) { catalogResolve(t, ready(t), o) })
		t.Run("fetch", func(t *testing.T) { catalogFetch(t, ready(t), o) })
	}
}

func catalogSearch(t *testing.T, s catalog.Source, o CatalogOptions) {
	var items []catalog.Item
	collect := func(i catalog.Item) error {
		items = append(items, i)
		return nil
	}
	if err := s.Search(t.Context(), catalog.Query{Text: o.Query}, collect); err != nil {
		brokenNow(t, "search", "Search: %v", err)
	}
	if len(items) == 0 && !o.Unsearchable {
		brokenNow(t, "search", "Search(%q) finds nothing", o.Query)
	}
	for _, i := range items {
		if i.Ref == "" || i.Name == "" || (i.Kind != catalog.KindModel && i.Kind != catalog.KindEngine) || i.SizeBytes < 0 {
			broken(t, "search", "Search gives the item %+v: reference, name and kind must be set", i)
		}
	}
	items = nil
	if err := s.Search(t.Context(), catalog.Query{Text: o.Query, Limit: 1}, collect); err != nil || len(items) > 1 {
		broken(t, "search-limit", "Search with limit 1 gives %d items (%v)", len(items), err)
	}
	items = nil
	if err := s.Search(t.Context(), catalog.Query{Text: "no such thing, surely"}, collect); err != nil || len(items) > 0 {
		broken(t, "search", "Search for nonsense gives %d items (%v)", len(items), err)
	}
	if o.Unsearchable {
		return
	}
	enough := errors.New("enough")
	if err := s.Search(t.Context(), catalog.Query{Text: o.Query}, func(catalog.Item) error { return enough }); !errors.Is(err, enough) {
		broken(t, "search-limit", "Search continues after emit failed: %v", err)
	}
}

func catalogResolve(t *testing.T, s catalog.Source, o CatalogOptions) {
	m, err := s.Resolve(t.Context(), o.Ref)
	if err != nil {
		brokenNow(t, "resolve", "Resolve(%q): %v", o.Ref, err)
	}
	if m.Ref == "" || m.Name == "" || (m.Kind != catalog.KindModel && m.Kind != catalog.KindEngine) || len(m.Files) == 0 {
		brokenNow(t, "resolve", "Resolve(%q) gives %+v: reference, name, kind and files must be set", o.Ref, m)
	}
	for _, f := range m.Files {
		if !filepath.IsLocal(filepath.FromSlash(f.Path)) || strings.Contains(f.Path, `\`) {
			broken(t, "file-path", "path %q is not relative and slash-separated, or leads outside", f.Path)
		}
		if f.Digest != "" && !regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$`).MatchString(f.Digest) {
			broken(t, "file-digest", "digest %q is not sha256:<hex> or sha512:<hex>", f.Digest)
		}
		if f.SizeBytes < 0 {
			broken(t, "file-digest", "size %d of %s", f.SizeBytes, f.Path)
		}
		checkURL(t, s, f)
	}
	for _, n := range m.Notes {
		if n == "" || len(n) > 1000 || strings.ContainsAny(n, "\r\n") {
			broken(t, "resolve", "note %q is not one line of at most 1000 bytes", n)
		}
	}
	again, err := s.Resolve(t.Context(), m.Ref)
	m.Notes, again.Notes = nil, nil // notes may depend on the reference as asked
	if err != nil || !reflect.DeepEqual(m, again) {
		broken(t, "resolve-exact", "the exact reference %q gives %+v, then %+v (%v)", m.Ref, m, again, err)
	}
}

// checkURL checks the URL from which the host may fetch a file itself.
func checkURL(t *testing.T, s catalog.Source, f catalog.File) {
	t.Helper()
	if f.URL == "" {
		if len(f.Header) > 0 {
			broken(t, "file-url", "%s has headers and no URL to send them to", f.Path)
		}
		return
	}
	u, err := url.Parse(f.URL)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.User != nil {
		broken(t, "file-url", "URL of %s is not one of http or https without credentials", f.Path)
	}
	info, err := s.Info(t.Context())
	if err != nil || !slices.Contains(info.Capabilities, catalog.CapabilityURL) {
		broken(t, "file-url", "%s has a URL, and Info.Capabilities %q do not say %q (%v)", f.Path, info.Capabilities, catalog.CapabilityURL, err)
	}
}

// start launches an executable the way a host does.
func start(t testing.TB, kind sdk.Kind, path string, env []string) *started {
	t.Helper()
	run := newProcess(t, path, env)
	sets := map[int]goplugin.PluginSet{}
	for _, v := range sdk.ProtocolVersions() {
		sets[v] = goplugin.PluginSet{string(kind): noClient{}}
	}
	client := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  sdk.Handshake(),
		VersionedPlugins: sets,
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		RunnerFunc:       run.runner,
		SkipHostEnv:      true,
		UnixSocketConfig: &goplugin.UnixSocketConfig{TempDir: run.dir},
		StartTimeout:     startTime,
		AutoMTLS:         kind != sdk.KindWorker,
		Logger:           hclog.NewNullLogger(),
	})
	t.Cleanup(run.end)
	protocol, err := client.Client()
	if err != nil {
		brokenNow(t, "launch", "%s is no plugin that can be used: %v", path, err)
	}
	conn := protocol.(*goplugin.GRPCClient).Conn
	t.Cleanup(func() { _ = conn.Close() })
	return &started{process: run, conn: conn}
}

type started struct {
	*process
	conn *grpc.ClientConn
}

type noClient struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (noClient) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error { return sdk.ErrUnsupported }

func (noClient) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, sdk.ErrUnsupported
}

// within returns fn's error, and reports a broken rule if fn takes longer than the limit.
func within(t testing.TB, rule string, limit time.Duration, what string, fn func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		brokenNow(t, rule, "%s takes longer than %s", what, limit)
		return nil
	}
}

// eventually polls check until it returns nil, and reports a broken rule if it never does within
// the limit.
func eventually(t testing.TB, rule string, limit time.Duration, check func() error) {
	t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			brokenNow(t, rule, "still not so after %s: %v", limit, err)
		case <-tick.C:
		}
	}
}
