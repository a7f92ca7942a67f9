package agent

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
)

// oneWorker leases one worker of model "tiny".
type oneWorker struct{ running atomic.Int64 }

func (r *oneWorker) Route(_ context.Context, q inference.Query) (inference.Lease, error) {
	if q.Model != "tiny" || q.Other {
		return inference.Lease{}, core.Errorf(core.NotFound, "no model %q", q.Model).Hint("Near to it are: tiny.")
	}
	if q.Progress != nil {
		q.Progress(core.Progress{})
	}
	r.running.Add(1)
	w := core.Worker{ID: "w1", Model: "tiny", Nonce: "n"}
	return inference.NewLease([]core.Candidate{{Worker: w}}, nil, nil, func(inference.Outcome) { r.running.Add(-1) }), nil
}

// inferRig returns a process with an inference service in front of a worker.
func inferRig(t *testing.T, worker http.HandlerFunc) (*process, *oneWorker) {
	t.Helper()
	srv := httptest.NewServer(worker)
	router := &oneWorker{}
	answers := inference.New(inference.Options{Router: router, Dial: func(ctx context.Context, _ core.Worker) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", srv.Listener.Addr().String())
	}})
	t.Cleanup(func() {
		answers.Close()
		srv.Close()
	})
	return &process{answers: answers}, router
}

func chunkText(text string) string {
	return fmt.Sprintf(`data: {"model":"tiny","choices":[{"index":0,"delta":{"content":%q}}]}`, text) + "\n\n"
}

func sendStream(w http.ResponseWriter, blocks ...string) {
	w.Header().Set("Content-Type", "text/event-stream")
	for _, b := range blocks {
		_, _ = fmt.Fprint(w, b)
		_ = http.NewResponseController(w).Flush()
	}
}

func TestInferJob(t *testing.T) {
	t.Parallel()
	const last = `data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n" +
		`data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}` + "\n\n"
	for name, c := range map[string]struct {
		model  string
		worker http.HandlerFunc
		text   string
		kind   core.Kind
	}{
		"whole answer": {"tiny", func(w http.ResponseWriter, _ *http.Request) {
			sendStream(w, ": busy\n\n", chunkText("a"), chunkText("b"), last, "data: [DONE]\n\n")
		}, "ab", ""},
		"unknown model": {"nosuch", nil, "", core.NotFound},
		"refused by the worker": {"tiny", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = fmt.Fprint(w, `{"error":{"message":"too long","type":"x"}}`)
		}, "", core.Invalid},
		"worker's own error": {"tiny", func(w http.ResponseWriter, _ *http.Request) {
			sendStream(w, chunkText("a"), `data: {"error":{"message":"out of memory","type":"server_error","code":"oom"}}`+"\n\n")
		}, "a", core.Internal},
		"cut": {"tiny", func(w http.ResponseWriter, _ *http.Request) {
			sendStream(w, chunkText("a"))
			panic(http.ErrAbortHandler)
		}, "a", core.WorkerLost},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, router := inferRig(t, c.worker)
			steps := 0
			var lines []string
			result, err := p.infer(t.Context(), core.Request{Model: c.model, Prompt: "hi"}, func(core.Progress) { steps++ }, func(s string) { lines = append(lines, s) })
			must.Eq(t, c.kind, core.KindOf(err), must.Sprint(err))
			must.Eq(t, c.text, result.Text)
			must.Eq(t, len(c.text), steps)
			must.Zero(t, router.running.Load())
			if c.kind == "" {
				must.Eq(t, core.InferResult{Model: "tiny", Worker: "w1", Text: "ab", FinishReason: "stop", PromptTokens: 3, CompletionTokens: 2}, result)
				must.Eq(t, []string{"busy"}, lines)
			}
		})
	}
}

// Cancelling a job ends its request at the worker.
func TestInferJobCancel(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{})
	p, router := inferRig(t, func(w http.ResponseWriter, r *http.Request) {
		sendStream(w, chunkText("a"))
		<-r.Context().Done()
		close(gone)
	})
	ctx, cancel := context.WithCancel(t.Context())
	_, err := p.infer(ctx, core.Request{Model: "tiny", Prompt: "hi"}, func(core.Progress) { cancel() }, func(string) {})
	must.Eq(t, core.Cancelled, core.KindOf(err))
	<-gone
	must.Zero(t, router.running.Load())
}
