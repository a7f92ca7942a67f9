package sdktest_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest/fake"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

const breakEnv = "SDKTEST_BREAK"

// broken lists defects, and what the suite must say about each.
func broken() map[string]string {
	return map[string]string{
		"info changes":         "Info answers differently",
		"name":                 "Info.Name is",
		"no version":           "Info.Version is",
		"schema without doc":   "has no documentation",
		"takes anything":       "Configure takes",
		"error for the user":   "is a diagnostic",
		"no path":              "has no path",
		"mute":                 "Fingerprint ended without a report",
		"two devices, one id":  "must be there",
		"any device":           "want an error",
		"progress backwards":   "progress of",
		"fewer slots":          "after Start the status is",
		"no usage":             "usage is",
		"cut without a word":   "without [DONE]",
		"one at a time":        "while it drains",
		"cancels nothing":      "still not so after 1s",
		"drains at once":       "while a request ran",
		"accepts when drained": "want 503",
		"stop fails":           "cannot stop",
		"plain text errors":    "envelope",
		"resolve changes":      "the exact reference",
		"wrong digest":         "the manifest says sha256",
		"ignores offset":       "which are not the rest",
		"hides not found":      "want ErrNotFound",
		"ignores limit":        "Search with limit 1",
		"path outside":         "leads outside",
		"url with password":    "without credentials",
		"url not announced":    "do not say \"url\"",
		"header without url":   "no URL to send them to",
	}
}

// The suite finds every defect that it claims to find: each runs in a process of its own, which
// must fail with the right words.
func TestSuiteFindsDefects(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("runs the suite once for every defect")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range broken() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), exe, "-test.run", "^TestDefect$", "-test.timeout", "90s", "-test.failfast")
			cmd.Env = append(os.Environ(), breakEnv+"="+name)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("the suite does not notice")
			}
			if !strings.Contains(string(out), want) {
				t.Errorf("the suite does not say %q:\n%s", want, out)
			}
		})
	}
}

// TestDefect is run by TestSuiteFindsDefects.
func TestDefect(t *testing.T) {
	name := os.Getenv(breakEnv)
	if name == "" {
		t.Skip("run by TestSuiteFindsDefects")
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

func defectiveWorker(t *testing.T, name string) {
	sdktest.Worker(t, sdktest.WorkerInProcess(func() worker.Backend {
		return &badWorker{Worker: fake.NewWorker("fake", hclog.NewNullLogger()), defect: name}
	}),
		sdktest.WorkerOptions{BadConfig: json.RawMessage(`{"token_delay":"soon"}`), LongConfig: json.RawMessage(`{"token_delay":"5ms","tokens":300}`)})
}

type badWorker struct {
	*fake.Worker
	defect string
	infos  int
	one    chan struct{}
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
		return emit(worker.Fingerprint{Devices: []worker.Device{d, d}})
	case "mute":
		return nil
	}
	return b.Worker.Fingerprint(ctx, emit)
}

func (b *badWorker) Start(ctx context.Context, s worker.StartSpec, progress func(worker.Progress) error) (http.Handler, error) {
	switch b.defect {
	case "any device":
		s.Device = "fake:0"
	case "progress backwards":
		if err := progress(worker.Progress{Phase: "reading the model", Done: 1 << 40}); err != nil {
			return nil, err
		}
	case "fewer slots":
		s.Slots--
	}
	h, err := b.Worker.Start(ctx, s, progress)
	if err != nil {
		return nil, err
	}
	b.one = make(chan struct{}, 1)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch b.defect {
		case "one at a time":
			b.one <- struct{}{}
			defer func() { <-b.one }()
		case "cancels nothing":
			r = r.WithContext(context.WithoutCancel(r.Context()))
			w = unbreakable{w}
		case "no usage":
			w = &filter{ResponseWriter: w, drop: `"usage":{`}
		case "cut without a word":
			w = &filter{ResponseWriter: w, drop: "[DONE]"}
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

func (b *badWorker) Drain(ctx context.Context) error {
	if b.defect == "drains at once" {
		go func() { _ = b.Worker.Drain(context.WithoutCancel(ctx)) }()
		return nil
	}
	return b.Worker.Drain(ctx)
}

func (b *badWorker) Stop(ctx context.Context, grace time.Duration) error {
	err := b.Worker.Stop(ctx, grace)
	if b.defect == "stop fails" {
		return errors.New("cannot stop")
	}
	return err
}

// unbreakable goes on when its client is gone.
type unbreakable struct{ http.ResponseWriter }

func (u unbreakable) Write(b []byte) (int, error) {
	_, _ = u.ResponseWriter.Write(b)
	return len(b), nil
}

func (u unbreakable) FlushError() error {
	_ = http.NewResponseController(u.ResponseWriter).Flush()
	return nil
}

// filter swallows the writes that contain drop.
type filter struct {
	http.ResponseWriter
	drop string
}

func (f *filter) Write(b []byte) (int, error) {
	if strings.Contains(string(b), f.drop) && strings.HasPrefix(string(b), "data:") {
		return len(b), nil
	}
	return f.ResponseWriter.Write(b)
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
