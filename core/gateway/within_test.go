package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// ask asks from within the process.
func (r *rig) ask(ctx context.Context, path, body string) (*http.Response, error) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://within"+path, strings.NewReader(body))
	must.NoError(r.t, err)
	return (&http.Client{Transport: r.Within()}).Do(req)
}

const streamed = `{"model":"tiny","stream":true,"messages":[]}`

func TestWithin(t *testing.T) {
	t.Parallel()
	// Nobody is let in from outside, and no token is asked for inside.
	r := newRig(t, func(o *Options) { o.Auth = refuseAll{} })
	chunk := `data: {"object":"chat.completion.chunk","choices":[]}` + "\n\n"
	r.serve("w1", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, chunk+"data: [DONE]\n\n")
	})
	resp, err := r.ask(t.Context(), "/v1/chat/completions", streamed)
	must.NoError(t, err)
	must.Eq(t, 200, resp.StatusCode)
	must.NotEq(t, "", resp.Header.Get("X-Request-Id"))
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	must.StrContains(t, string(b), chunk)
	must.StrContains(t, string(b), "[DONE]")
	must.NoError(t, resp.Body.Close())

	resp, err = r.ask(t.Context(), "/v1/chat/completions", `{"model":"nosuch","messages":[]}`)
	must.NoError(t, err)
	must.Eq(t, 404, resp.StatusCode)
	b, err = io.ReadAll(resp.Body)
	must.NoError(t, err)
	must.StrContains(t, string(b), "model_not_found")
	must.NoError(t, resp.Body.Close())

	_, err = r.ask(t.Context(), "/v1/tokens", `{}`)
	must.ErrorContains(t, err, "not answered within the process")
	must.Zero(t, r.router.running())
}

type refuseAll struct{}

func (refuseAll) Authorize(context.Context, string, core.Scope) (core.Token, error) {
	return core.Token{}, core.Errorf("", core.Unauthenticated, "nobody")
}

// A worker that dies in the middle, and a caller who gives up, leave nothing behind and look like no whole answer.
func TestWithinIsCut(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	held := make(chan struct{})
	r.serve("w1", func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: {\"n\":%d}\n\n", i)
			_ = http.NewResponseController(w).Flush()
		}
		if req.Header.Get("X-Request-Id") == "hold" {
			<-req.Context().Done()
			close(held)
			return
		}
		panic(http.ErrAbortHandler)
	})
	resp, err := r.ask(t.Context(), "/v1/chat/completions", streamed)
	must.NoError(t, err)
	b, err := io.ReadAll(resp.Body)
	must.True(t, errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(string(b), `"error"`), must.Sprint(string(b)))
	must.StrNotContains(t, string(b), "[DONE]")
	must.NoError(t, resp.Body.Close())

	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://within/v1/chat/completions", strings.NewReader(streamed))
	must.NoError(t, err)
	req.Header.Set("X-Request-Id", "hold")
	resp, err = r.Within().RoundTrip(req)
	must.NoError(t, err)
	_, err = resp.Body.Read(make([]byte, 4))
	must.NoError(t, err)
	must.NoError(t, resp.Body.Close())
	<-held // the worker is told
}
