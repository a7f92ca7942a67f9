package simple

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
	"github.com/rbee-project/rbee/plugins/sdk/worker/api"
)

func say(text string) func(context.Context, string, func(string) error) error {
	return func(_ context.Context, prompt string, emit func(string) error) error { return emit(text + prompt) }
}

func backendOf(w Worker) worker.Backend {
	w.Info = sdk.Info{Name: "mine", Version: "1", Summary: "Mine."}
	return w.Backend(slog.New(slog.DiscardHandler))
}

func spec() worker.StartSpec {
	return worker.StartSpec{WorkerID: "w1", Nonce: "n", ModelID: "tiny", Device: "mine", Slots: 1}
}

func ask(h http.Handler, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/completions", strings.NewReader(body)))
	return w
}

func TestGenerate(t *testing.T) {
	t.Parallel()
	b := backendOf(Worker{Generate: say("so: "), Models: []string{}})
	info, err := b.Info(t.Context())
	must.NoError(t, err)
	must.Eq(t, sdk.KindWorker, info.Kind)
	h, err := b.Start(t.Context(), spec(), nil)
	must.NoError(t, err)
	must.StrContains(t, ask(h, `{"prompt":"hi"}`).Body.String(), `"text":"so: hi"`)
	// A Generate function cannot honour these.
	must.Eq(t, 400, ask(h, `{"prompt":"hi","logit_bias":{"1":-100}}`).Code)
	must.Eq(t, 400, ask(h, `{"prompt":"hi","lora":[{"name":"x","scale":1}]}`).Code)
}

func TestFingerprint(t *testing.T) {
	t.Parallel()
	enough := errors.New("enough")
	first := func(w Worker) (got worker.Fingerprint) {
		err := backendOf(w).Fingerprint(t.Context(), func(f worker.Fingerprint) error {
			got = f
			return enough
		})
		must.ErrorIs(t, err, enough)
		return got
	}
	must.Eq(t, worker.Fingerprint{Devices: []worker.Device{{ID: "mine", Kind: "mine", Name: "Mine."}}}, first(Worker{}))
	gpu := worker.Device{ID: "cuda:0", Kind: "cuda", Name: "A GPU"}
	must.Eq(t, worker.Fingerprint{Devices: []worker.Device{gpu}, Problem: "Install it.", ByName: true, Models: []string{"m"}}, first(Worker{
		Device: gpu, Models: []string{"m"}, Problem: func(context.Context) string { return "Install it." },
	}))
}

// A model that Load returns is served as long as requests run, and then freed once.
func TestLoad(t *testing.T) {
	t.Parallel()
	closed := 0
	b := backendOf(Worker{Models: []string{}, Load: func(_ context.Context, s worker.StartSpec, _ func(worker.Progress) error) (Loaded, error) {
		if s.ModelID == "bad" {
			return Loaded{}, sdk.ErrUnsupported
		}
		return Loaded{Model: model{}, ContextTokens: 77, Close: func() { closed++ }}, nil
	}})
	st, err := b.Status(t.Context())
	must.NoError(t, err)
	must.Eq(t, worker.StateIdle, st.State)
	bad := spec()
	bad.ModelID = "bad"
	_, err = b.Start(t.Context(), bad, nil)
	must.ErrorIs(t, err, sdk.ErrUnsupported)
	st, _ = b.Status(t.Context())
	must.Eq(t, worker.StateFailed, st.State)

	h, err := b.Start(t.Context(), spec(), nil)
	must.NoError(t, err)
	must.StrContains(t, ask(h, `{"prompt":"hi","temperature":0.25}`).Body.String(), `"text":"0.25"`)
	st, _ = b.Status(t.Context())
	must.Eq(t, worker.Status{State: worker.StateReady, Slots: 1, ContextTokens: 77, TokensTotal: 1, Capabilities: []string{"chat", "completions"}}, st)
	for range 2 {
		must.NoError(t, b.Stop(t.Context(), time.Second))
		must.Eq(t, 1, closed)
	}
	st, _ = b.Status(t.Context())
	must.Eq(t, worker.StateStopped, st.State)
}

type model struct{}

func (model) Generate(_ context.Context, r api.Request, emit func(string) error) error {
	return emit(strconv.FormatFloat(*r.Sampling.Temperature, 'g', -1, 64))
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*worker.StartSpec){
		"another device":     func(s *worker.StartSpec) { s.Device = "cpu" },
		"no such model file": func(s *worker.StartSpec) { s.ModelPath = filepath.Join(t.TempDir(), "x") },
		"no model file":      func(*worker.StartSpec) {},
	} {
		s := spec()
		change(&s)
		_, err := backendOf(Worker{Generate: say("")}).Start(t.Context(), s, nil)
		must.ErrorIs(t, err, sdk.ErrNotFound, must.Sprint(name))
	}
	b := backendOf(Worker{Generate: say(""), Models: []string{}})
	must.NoError(t, b.Stop(t.Context(), 0))
	_, err := b.Start(t.Context(), spec(), nil)
	must.ErrorIs(t, err, sdk.ErrState)
}
