package sdktest_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest/fake"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

const (
	breakEnv = "SDKTEST_BREAK"
	builtEnv = "SDKTEST_BUILT"
)

// broken maps each defect to the rules that it breaks: one, or in one case two.
func broken() map[string]string {
	return map[string]string{
		"info changes":         "info-stable",
		"name":                 "info-name",
		"no version":           "info-version",
		"schema without doc":   "schema-docs",
		"takes anything":       "configure-diagnostics",
		"error for the user":   "configure-diagnostics",
		"no path":              "configure-diagnostics",
		"wants no defaults":    "configure-defaults",
		"mute":                 "fingerprint-first",
		"two devices, one id":  "fingerprint-devices",
		"any device":           "start-refuses",
		"progress backwards":   "start-progress",
		"fewer slots":          "status",
		"no usage":             "usage",
		"wrong usage":          "usage",
		"usage beyond limit":   "usage",
		"cut without a word":   "chat-stream",
		"cut characters":       "utf8",
		"no completions":       "completions",
		"no slot limit":        "slot-limit",
		"hidden slot limit":    "slot-limit",
		"cancels nothing":      "cancel cancel-queued",
		"cancels nothing yet":  "cancel-queued",
		"drains at once":       "drain",
		"accepts when drained": "drain",
		"stop fails":           "stop",
		"plain text errors":    "errors",
		"says nothing":         "capabilities",
		"unsorted":             "capabilities",
		"a block twice":        "prefix-blocks",
		"keeps what it reads":  "state-file",
		"ignores tools":        "tools",
		"says tools":           "tools",
		"ignores format":       "json-schema",
		"says json":            "json-schema",
		"says embeddings":      "embeddings",
		"one vector for two":   "embeddings",
		"says ranks":           "rerank",
		"ranks upside down":    "rerank",
		"says tokens":          "tokenize",
		"tokens of another":    "tokenize",
		"serves anybody":       "data-guard",
		"ignores logprobs":     "logprobs",
		"ignores images":       "vision",
		"outlives its tether":  "tether",
		"prints":               "stdout",
		"closes stdout":        "launch",
		"resolve changes":      "resolve-exact",
		"wrong digest":         "file-digest",
		"ignores offset":       "fetch",
		"hides not found":      "resolve-missing",
		"ignores limit":        "search-limit",
		"path outside":         "file-path",
		"url with password":    "file-url",
		"url not announced":    "file-url",
		"header without url":   "file-url",
	}
}

// places is how many suites run at once. They spend most of their time waiting.
const places = 8

// Every defect breaks its rule and no other. Each runs in a separate process, which must fail and
// name that rule.
func TestSuiteFindsDefects(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("runs the suite once for every defect")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`(?m)\.go:\d+: ` + sdktest.RulePrefix + `([a-z0-9-]+): `)
	place := make(chan struct{}, places)
	var wg sync.WaitGroup
	for defect, want := range broken() {
		wg.Go(func() {
			place <- struct{}{}
			defer func() { <-place }()
			cmd := exec.CommandContext(t.Context(), exe, "-test.run", "^TestDefect$", "-test.timeout", "180s")
			cmd.Env = append(os.Environ(), breakEnv+"="+defect, builtEnv+"="+built)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Errorf("%s: the suite does not notice", defect)
				return
			}
			var got []string
			for _, m := range named.FindAllStringSubmatch(string(out), -1) {
				if !slices.Contains(got, m[1]) {
					got = append(got, m[1])
				}
			}
			if strings.Join(got, " ") != want {
				t.Errorf("%s: the suite names the rules %q, want %q:\n%s", defect, got, want, out)
			}
		})
	}
	wg.Wait()
}

// Every rule has a sentence and a unique name, and is listed in the protocol document.
func TestRules(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../../contributing/plugin-protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range sdktest.Rules() {
		if !regexp.MustCompile(`^[a-z0-9-]{3,24}$`).MatchString(r.Name) || seen[r.Name] || !strings.HasSuffix(r.Text, ".") {
			t.Errorf("rule %+v", r)
		}
		if row := "| `" + r.Name + "` | " + r.Text + " |\n"; !strings.Contains(string(doc), row) {
			t.Errorf("contributing/plugin-protocol.md lacks the row %s", row)
		}
		seen[r.Name] = true
	}
}

// TestDefect is run by TestSuiteFindsDefects.
func TestDefect(t *testing.T) {
	name := os.Getenv(breakEnv)
	if name == "" {
		t.Skip("run by TestSuiteFindsDefects")
	}
	if defect, ok := ofProcesses()[name]; ok {
		sdktest.Worker(t, sdktest.WorkerBinary(os.Getenv(builtEnv)+"/rbee-worker-fake", "FAKE_DEFECT="+defect), shortOptions())
		return
	}
	if !slices.Contains(ofCatalogs(), name) {
		defectiveWorker(t, name)
		return
	}
	dir := t.TempDir()
	for _, f := range []string{"a.gguf", "b.gguf"} {
		if err := os.WriteFile(dir+"/"+f, []byte("0123456789"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sdktest.Catalog(t, sdktest.CatalogInProcess(func() catalog.Source { return &badCatalog{Catalog: fake.NewCatalog("fake"), defect: name} }),
		sdktest.CatalogOptions{Config: json.RawMessage(`{"dir":"` + dir + `"}`), Ref: "a.gguf", NoRef: "c.gguf"})
}

func ofCatalogs() []string {
	return []string{"resolve changes", "wrong digest", "ignores offset", "hides not found", "ignores limit", "path outside", "url with password", "url not announced", "header without url"}
}

// ofProcesses maps the defects that only a process can have to the fake worker's names for them.
func ofProcesses() map[string]string {
	return map[string]string{"outlives its tether": "tether", "prints": "stdout", "closes stdout": "closed stdout"}
}

func shortOptions() sdktest.WorkerOptions {
	return sdktest.WorkerOptions{BadConfig: json.RawMessage(`{"token_delay":"soon"}`), LongConfig: json.RawMessage(`{"token_delay":"4ms","tokens":300}`)}
}

func defectiveWorker(t *testing.T, name string) {
	var last *badWorker
	target := sdktest.WorkerInProcess(func() worker.Backend {
		last = &badWorker{Worker: fake.NewWorker("fake", hclog.NewNullLogger()), defect: name}
		return last
	})
	launch := target.Launch
	target.Launch = func(t testing.TB) sdktest.WorkerInstance {
		w := launch(t)
		last.socket = w.DataSocket
		return w
	}
	sdktest.Worker(t, target, shortOptions())
}

type badWorker struct {
	*fake.Worker
	defect string
	infos  int
	line   chan struct{} // the slots of "cancels nothing yet"
	queued atomic.Int32
	socket string // the data socket, for "serves anybody"
	open   *http.Server

	stateFile string
}

// serveAnybody replaces the guarded socket.
func (b *badWorker) serveAnybody(h http.Handler) error {
	if err := os.Remove(b.socket); err != nil {
		return err
	}
	l, err := net.Listen("unix", b.socket)
	if err != nil {
		return err
	}
	b.open = &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go func() { _ = b.open.Serve(lenient{l}) }()
	return os.Chmod(b.socket, 0o600)
}

// lenient skips anything that precedes a request.
type lenient struct{ net.Listener }

func (l lenient) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &lenientConn{Conn: c}, nil
}

type lenientConn struct {
	net.Conn
	begun bool
}

func (c *lenientConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.begun || n == 0 {
		return n, err
	}
	c.begun = true
	if at := regexp.MustCompile(`(GET|POST) /`).FindIndex(p[:n]); at != nil {
		return copy(p, p[at[0]:n]), err
	}
	n, err = c.Conn.Read(p) // the first read was only the opening
	return n, err
}

func (b *badWorker) Info(ctx context.Context) (sdk.Info, error) {
	i, err := b.Worker.Info(ctx)
	b.infos++
	switch b.defect {
	case "info changes":
		i.Summary += strings.Repeat("x", b.infos)
	case "name":
		i.Name = "Fake Worker"
	case "no version":
		i.Version = ""
	}
	return i, err
}

func (b *badWorker) Schema(ctx context.Context) (sdk.Schema, error) {
	s, err := b.Worker.Schema(ctx)
	if b.defect == "schema without doc" {
		s.Attributes[0].Doc = ""
	}
	return s, err
}

func (b *badWorker) Configure(ctx context.Context, c sdk.Config) (sdk.Diagnostics, error) {
	if b.defect == "wants no defaults" && strings.Contains(string(c.JSON), `"fail_start"`) && strings.Contains(string(c.JSON), `"token_delay":"0s"`) {
		return sdk.Diagnostics{{Summary: "Not needed", Detail: "Leave it out.", Path: []any{"fail_start"}}}, nil
	}
	d, err := b.Worker.Configure(ctx, c)
	switch {
	case !d.HasErrors():
	case b.defect == "takes anything":
		return nil, nil
	case b.defect == "error for the user":
		return nil, errors.New("bad configuration")
	case b.defect == "no path":
		d[0].Path = nil
	}
	return d, err
}

func (b *badWorker) Fingerprint(ctx context.Context, emit func(worker.Fingerprint) error) error {
	switch b.defect {
	case "two devices, one id":
		d := worker.Device{ID: "fake:0", Kind: "fake", Name: "x"}
		if err := emit(worker.Fingerprint{Devices: []worker.Device{d, d}}); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	case "mute":
		return nil
	}
	return b.Worker.Fingerprint(ctx, emit)
}

func (b *badWorker) Start(ctx context.Context, s worker.StartSpec, progress func(worker.Progress) error) (http.Handler, error) {
	b.stateFile = s.StateFile
	switch b.defect {
	case "any device":
		s.Device = "fake:0"
	case "progress backwards":
		if err := progress(worker.Progress{Phase: "reading the model", Done: 1 << 40}); err != nil {
			return nil, err
		}
	case "fewer slots":
		s.Slots--
	case "no slot limit", "hidden slot limit":
		s.Slots = 100
	}
	h, err := b.Worker.Start(ctx, s, progress)
	if err != nil {
		return nil, err
	}
	b.line = make(chan struct{}, s.Slots)
	if b.defect == "serves anybody" {
		return h, b.serveAnybody(h)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch b.defect {
		case "cancels nothing yet":
			if r.Method == http.MethodPost {
				b.queued.Add(1)
				b.line <- struct{}{}
				b.queued.Add(-1)
				defer func() { <-b.line }()
			}
		case "cancels nothing":
			r = r.WithContext(context.WithoutCancel(r.Context()))
			w = unbreakable{w}
		case "no usage":
			w = &filter{ResponseWriter: w, drop: `"usage":{`}
		case "wrong usage":
			w = &filter{ResponseWriter: w, replace: func(s string) string {
				if strings.HasPrefix(s, "data:") {
					return strings.Replace(s, `"prompt_tokens":3`, `"prompt_tokens":4`, 1)
				}
				return s
			}}
		case "usage beyond limit":
			w = &filter{ResponseWriter: w, replace: func(s string) string {
				return strings.ReplaceAll(s, `"completion_tokens":1,"total_tokens":4`, `"completion_tokens":2,"total_tokens":5`)
			}}
		case "cut without a word":
			if body, err := io.ReadAll(r.Body); err == nil {
				r.Body = io.NopCloser(strings.NewReader(string(body)))
				if strings.Contains(string(body), `"max_tokens":16`) && strings.Contains(string(body), `"messages"`) {
					w = &filter{ResponseWriter: w, drop: "[DONE]"}
				}
			}
		case "cut characters":
			w = &filter{ResponseWriter: w, replace: func(s string) string {
				if strings.HasPrefix(s, "data:") {
					return strings.Replace(s, "東", "\xe6\x9d", 1)
				}
				return s
			}}
		case "no completions":
			if strings.HasSuffix(r.URL.Path, "/v1/completions") {
				r.URL.Path = "/none"
			}
		case "ignores tools", "ignores format", "ignores logprobs", "ignores images":
			r = without(r, b.defect)
		case "one vector for two", "ranks upside down", "tokens of another":
			if answer, ok := map[string]string{
				"/v1/embeddings": `{"data":[{"index":0,"embedding":[1]}]}`,
				"/v1/rerank":     `{"results":[{"index":0,"relevance_score":1},{"index":1,"relevance_score":2},{"index":2,"relevance_score":3}]}`,
				"/tokenize":      `{"tokens":[1]}`,
				"/detokenize":    `{"content":"two"}`,
			}[r.URL.Path]; ok {
				_, _ = io.WriteString(w, answer)
				return
			}
		case "plain text errors":
			if strings.Contains(r.URL.Path, "/no/such") {
				http.Error(w, "not found", http.StatusNotFound)
				return
			}
		case "accepts when drained":
			if st, err := b.Worker.Status(r.Context()); err == nil && st.State == worker.StateDraining {
				_, _ = io.WriteString(w, "{}")
				return
			}
		}
		h.ServeHTTP(w, r)
	}), nil
}

// without removes from a request what a defective worker ignores.
func without(r *http.Request, defect string) *http.Request {
	var body map[string]any
	if json.NewDecoder(r.Body).Decode(&body) != nil {
		return r
	}
	switch defect {
	case "ignores tools":
		delete(body, "tools")
		delete(body, "tool_choice")
	case "ignores format":
		delete(body, "response_format")
	case "ignores logprobs":
		delete(body, "logprobs")
		delete(body, "top_logprobs")
	case "ignores images":
		if list, ok := body["messages"].([]any); ok && len(list) > 0 {
			if m, ok := list[0].(map[string]any); ok {
				if parts, ok := m["content"].([]any); ok {
					m["content"] = parts[:1]
				}
			}
		}
	}
	text, err := json.Marshal(body)
	if err != nil {
		return r
	}
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(strings.NewReader(string(text)))
	r.ContentLength = int64(len(text))
	return r
}

func (b *badWorker) Status(ctx context.Context) (worker.Status, error) {
	st, err := b.Worker.Status(ctx)
	switch b.defect {
	case "no slot limit":
		st.Slots = min(st.Slots, 2)
	case "hidden slot limit":
		if st.Slots > 2 {
			over := max(st.Active-2, 0)
			st.Slots, st.Active, st.Queued = 2, st.Active-over, over
		}
	case "cancels nothing yet":
		st.Queued += int(b.queued.Load())
	case "says nothing":
		st.Capabilities = nil
	case "unsorted":
		st.Capabilities = []worker.Capability{worker.CapabilityCompletions, worker.CapabilityChat}
	case "a block twice":
		st.PrefixBlocks, st.PrefixBlockTokens = []uint64{7, 7}, 64
	case "says tools":
		st.Capabilities = append(st.Capabilities, worker.CapabilityTools)
	case "says json":
		st.Capabilities = append(st.Capabilities, worker.CapabilityJSONSchema)
	case "says embeddings", "one vector for two":
		st.Capabilities = append(st.Capabilities, worker.CapabilityEmbeddings)
	case "says ranks", "ranks upside down":
		st.Capabilities = append(st.Capabilities, worker.CapabilityRerank)
	case "says tokens", "tokens of another":
		st.Capabilities = append(st.Capabilities, worker.CapabilityTokenize)
	}
	return st, err
}

func (b *badWorker) Drain(ctx context.Context) error {
	if b.defect == "drains at once" {
		go func() { _ = b.Worker.Drain(context.WithoutCancel(ctx)) }()
		return nil
	}
	return b.Worker.Drain(ctx)
}

func (b *badWorker) Stop(ctx context.Context, grace time.Duration) error {
	err := b.Worker.Stop(ctx, grace)
	if b.open != nil {
		_ = b.open.Close()
	}
	if st, statusErr := b.Worker.Status(ctx); b.defect == "keeps what it reads" && statusErr == nil && st.WorkerID != "" {
		return errors.Join(err, os.WriteFile(b.stateFile, []byte("a prompt"), 0o600))
	}
	if b.defect == "stop fails" {
		return errors.New("cannot stop")
	}
	return err
}

// unbreakable keeps writing after its client has disconnected.
type unbreakable struct{ http.ResponseWriter }

func (u unbreakable) Write(b []byte) (int, error) {
	_, _ = u.ResponseWriter.Write(b)
	return len(b), nil
}

func (u unbreakable) FlushError() error {
	_ = http.NewResponseController(u.ResponseWriter).Flush()
	return nil
}

// filter drops the events that contain drop, and applies replace to the rest.
type filter struct {
	http.ResponseWriter
	drop    string
	replace func(string) string
}

func (f *filter) Write(b []byte) (int, error) {
	text := string(b)
	if f.drop != "" && strings.Contains(text, f.drop) && strings.HasPrefix(text, "data:") {
		return len(b), nil
	}
	if f.replace != nil {
		text = f.replace(text)
	}
	_, err := f.ResponseWriter.Write([]byte(text))
	return len(b), err
}

func (f *filter) FlushError() error { return http.NewResponseController(f.ResponseWriter).Flush() }

type badCatalog struct {
	*fake.Catalog
	defect   string
	resolved int
}

func (b *badCatalog) Search(ctx context.Context, q catalog.Query, emit func(catalog.Item) error) error {
	if b.defect == "ignores limit" {
		q.Limit = 0
	}
	return b.Catalog.Search(ctx, q, emit)
}

func (b *badCatalog) Resolve(ctx context.Context, ref string) (catalog.Manifest, error) {
	m, err := b.Catalog.Resolve(ctx, ref)
	if err != nil {
		if b.defect == "hides not found" {
			return m, errors.New("sorry")
		}
		return m, err
	}
	b.resolved++
	switch b.defect {
	case "resolve changes":
		m.Version += strings.Repeat("x", b.resolved)
	case "wrong digest":
		m.Files[0].Digest = "sha256:" + strings.Repeat("0", 64)
	case "path outside":
		m.Files[0].Path = "../a.gguf"
	case "url with password":
		m.Files[0].URL = "https://me:secret@origin.example/a.gguf"
	case "url not announced":
		m.Files[0].URL = "https://origin.example/a.gguf"
	case "header without url":
		m.Files[0].Header = map[string]string{"Authorization": "secret"}
	}
	return m, nil
}

func (b *badCatalog) Fetch(ctx context.Context, f catalog.File, offset int64, w io.Writer) error {
	if b.defect == "ignores offset" {
		offset = 0
	}
	return b.Catalog.Fetch(ctx, f, offset, w)
}
