package operation_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
)

// An encoded result decodes to the same value, with [] in place of nil.
func TestReceive(t *testing.T) {
	t.Parallel()
	text, err := operation.Encode([]core.WorkerBinary{{ID: "cpu@1"}})
	must.NoError(t, err)
	v, err := operation.WorkerBinaryList.Receive(text)
	must.NoError(t, err)
	must.Eq(t, any([]core.WorkerBinary{{ID: "cpu@1", Devices: []core.Device{}, InUseBy: []string{}}}), v)
	text, err = operation.Encode([]core.Process(nil))
	must.NoError(t, err)
	must.Eq(t, "[]", string(text))
	v, err = operation.WorkerProcessGet.Receive([]byte(`{"pid":7,"of_a_newer_hive":{"x":[1]}}`))
	must.NoError(t, err)
	must.Eq(t, any(core.Process{PID: 7}), v)
}

func TestReceiveBounds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		text string
		kind core.Kind
	}{
		"another type":       {`{"pid":"seven"}`, core.Internal},
		"a list":             {`[]`, core.Internal},
		"not JSON":           {`{`, core.Internal},
		"nothing":            {``, core.Internal},
		"too long":           {`{"type":"` + strings.Repeat("x", operation.MaxResultBytes) + `"}`, core.TooLarge},
		"many objects":       {`[` + strings.Repeat("{},", 30_000) + `{}]`, core.TooLarge},
		"many lists":         {`[` + strings.Repeat("[],", 30_000) + `[]]`, core.TooLarge},
		"many values":        {`[` + strings.Repeat("0,", 300_000) + `0]`, core.TooLarge},
		"a text like a list": {`{"pid":7,"type":"` + strings.Repeat(`[{,\"`, 100_000) + `"}`, ""},
	} {
		_, err := operation.WorkerProcessGet.Receive([]byte(c.text))
		must.Eq(t, c.kind, core.KindOf(err), must.Sprint(name))
	}
	_, err := operation.Encode(core.Process{Type: strings.Repeat("x", operation.MaxResultBytes)})
	must.Eq(t, core.TooLarge, core.KindOf(err))
}

// A client's GET request arrives unchanged, for every operation that has a route.
func TestPathAndRequest(t *testing.T) {
	t.Parallel()
	for _, s := range operation.All() {
		want := requestOf(s)
		want.RequestID = "" // a GET request has none
		path, err := s.Path(want)
		if s.Get == "" {
			must.Eq(t, core.Unsupported, core.KindOf(err), must.Sprint(s.Name))
			continue
		}
		must.NoError(t, err)
		got := core.Request{}
		mux := http.NewServeMux()
		mux.HandleFunc("GET "+s.Get, func(_ http.ResponseWriter, r *http.Request) { got, err = s.RequestOf(r) })
		mux.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, http.NoBody))
		must.NoError(t, err, must.Sprint(s.Name))
		must.Eq(t, want, got, must.Sprint(s.Name))
		must.NoError(t, operation.Check(got))
	}
}

func TestPathOfNames(t *testing.T) {
	t.Parallel()
	path, err := operation.ModelGet.Path(core.Request{Model: "a/b?c#d%2F"})
	must.NoError(t, err)
	must.Eq(t, "/v1/hives/localhost/models/a%2Fb%3Fc%23d%252F", path)
	path, err = operation.CatalogSearch.Path(core.Request{Hive: "h1", Text: "a&b", Limit: 3})
	must.NoError(t, err)
	must.Eq(t, "/v1/hives/h1/catalog?limit=3&q=a%26b", path)
	for _, name := range []string{"", ".", ".."} {
		_, err := operation.ModelGet.Path(core.Request{Hive: "h1", Model: name})
		must.Eq(t, core.NotFound, core.KindOf(err), must.Sprint(name))
	}
	_, err = operation.WorkerProcessGet.RequestOf(httptest.NewRequest(http.MethodGet, "/", http.NoBody))
	must.NoError(t, err)
	for _, limit := range []string{"0", "-1", "x", "9999999999999999999999"} {
		_, err = operation.CatalogSearch.RequestOf(httptest.NewRequest(http.MethodGet, "/?limit="+limit, http.NoBody))
		must.Eq(t, core.Invalid, core.KindOf(err), must.Sprint(limit))
	}
}

// wrong answers with a value that is not any operation's result.
type wrong struct{}

func (wrong) Answer(context.Context, core.Request) (any, error) { return struct{}{}, nil }

func TestAskChecksTheType(t *testing.T) {
	t.Parallel()
	_, err := operation.HiveList.Ask(t.Context(), wrong{}, core.Request{})
	must.Eq(t, core.Internal, core.KindOf(err))
}

// Every registration is complete for its kind of operation.
func TestRegistrations(t *testing.T) {
	t.Parallel()
	for _, s := range operation.All() {
		what := must.Sprint(s.Name)
		must.Eq(t, reflect.TypeOf(s.Zero()).Kind() == reflect.Slice, s.IsList(), what)
		if s.AsksHive || s.Registry {
			must.Eq(t, operation.RunsOnQueen, s.Runs, what) // as a job, a queen runs it as well
		}
		if s.AsksHive {
			f, ok := fieldOf(s, "hive")
			must.True(t, ok && f.Required, what)
		}
		must.False(t, s.AsksHive && s.Registry, what)
		if s.Get != "" {
			must.Eq(t, operation.RunsOnQueen, s.Runs, what)
			must.Eq(t, core.Scope(""), s.Scope, what) // a GET needs core.ScopeRead
		}
	}
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte(`[{"id":"m","files":[{"path":"x","size_bytes":7}],"facts":{"layers":6}}]`))
	f.Add([]byte(`[{"created_at":"2023-11-14T22:13:20Z","fits":[{"hive":"h1"}]}]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		v, err := operation.ModelList.Receive(text)
		if err != nil {
			if k := core.KindOf(err); k != core.Internal && k != core.TooLarge {
				t.Fatalf("%v is %s", err, k)
			}
			return
		}
		again, err := json.Marshal(v)
		must.NoError(t, err)
		_, err = operation.ModelList.Receive(again)
		if err != nil && core.KindOf(err) != core.TooLarge { // every field was encoded
			t.Fatal(err)
		}
	})
}
