package gateway

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/admission"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
	"github.com/rbee-project/rbee/core/inference"
)

// fakeLimiter admits all requests, or refuses them for a while, and records their usage.
type fakeLimiter struct {
	refuse time.Duration // 0: admits all

	mu    sync.Mutex // guards below
	keys  []string
	about []int64
	used  []int64
}

func (f *fakeLimiter) Admit(_ context.Context, key string, tokens int64) ([]inference.Rate, func(int64), error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keys, f.about = append(f.keys, key), append(f.about, tokens)
	rates := []inference.Rate{
		{Rate: admission.Rate{Of: admission.Requests, Count: 1000, Per: time.Hour}, Remaining: 900, Reset: time.Hour},
		{Rate: admission.Rate{Of: admission.Requests, Count: 100, Per: time.Minute}, Remaining: 7, Reset: 59500 * time.Millisecond},
		{Rate: admission.Rate{Of: admission.Tokens, Count: 5000, Per: time.Minute}, Remaining: 4000, Reset: time.Minute},
		{Rate: admission.Rate{Of: admission.Concurrent, Count: 4}, Remaining: 3},
	}
	if f.refuse > 0 {
		return rates, nil, &inference.LimitError{RetryAfter: f.refuse, Err: core.Errorf(core.Overloaded, "the token has reached its limit")}
	}
	return rates, func(used int64) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.used = append(f.used, used)
	}, nil
}

func (f *fakeLimiter) settled() []int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.used)
}

// The headers are those that clients of OpenAI and Anthropic read, in every dialect, and report the
// window with the least left. The usage of a request is what its worker reports, or else an
// estimate.
func TestRates(t *testing.T) {
	t.Parallel()
	limiter := &fakeLimiter{}
	r := newRig(t, func(o *rigOptions) {
		o.inf.Limiter = limiter
		o.Auth = fakecluster.New(fakecluster.State{Secrets: map[string]core.Token{"k": {ID: "t1", Kind: core.TokenAPI, Scopes: []core.Scope{core.ScopeInfer, core.ScopeRead}}}})
	})
	usage := `,"usage":{"prompt_tokens":11,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":4}}`
	r.serve("w1", func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("Accept") == "application/json" {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`{"object":"chat.completion","model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]` + usage + `}`))
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for range 3 {
			_, _ = w.Write([]byte(`data: {"choices":[{"index":0,"delta":{"content":"x"}}]}` + "\n\n"))
		}
		_, _ = w.Write([]byte("data: [DONE]\n\n"))
	})
	const rest = `"model":"tiny","max_tokens":40,"messages":[{"role":"user","content":"hi"}]}`
	for _, path := range []string{"/v1/chat/completions", "/v1/messages", "/api/chat"} {
		resp, text := r.as("k", http.MethodPost, path, `{"stream":false,`+rest)
		must.Eq(t, http.StatusOK, resp.StatusCode, must.Sprint(text))
		for name, want := range map[string]string{
			"x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": "7", "x-ratelimit-reset-requests": "59.5s",
			"x-ratelimit-limit-tokens": "5000", "x-ratelimit-remaining-tokens": "4000", "x-ratelimit-reset-tokens": "1m0s",
			"anthropic-ratelimit-requests-limit": "100", "anthropic-ratelimit-tokens-remaining": "4000",
		} {
			must.Eq(t, want, resp.Header.Get(name), must.Sprint(path, name))
		}
		_, err := time.Parse(time.RFC3339, resp.Header.Get("anthropic-ratelimit-requests-reset"))
		must.NoError(t, err)
	}
	eventually(t, "what they used is told", func() bool { return slices.Equal(limiter.settled(), []int64{16, 16, 16}) })

	body := `{"stream":true,` + rest
	_, _ = r.as("k", http.MethodPost, "/v1/chat/completions", body)
	about := int64(len(body))/4 + 3
	eventually(t, "a stream that tells no usage is estimated", func() bool { return slices.Equal(limiter.settled(), []int64{16, 16, 16, about}) })
	resp, _ := r.as("k", http.MethodPost, "/v1/chat/completions", `{"model":"nobody","messages":[]}`)
	must.Eq(t, http.StatusNotFound, resp.StatusCode)
	eventually(t, "what no worker answered used nothing", func() bool { return slices.Equal(limiter.settled(), []int64{16, 16, 16, about, 0}) })
	_, metrics := r.as("k", http.MethodGet, "/metrics", "")
	for _, line := range []string{
		`rbee_gateway_key_requests_total{key="t1",model="tiny"} 4`, `rbee_gateway_key_tokens_total{key="t1",kind="answer",model="tiny"} 18`,
		`rbee_gateway_key_tokens_total{key="t1",kind="cached",model="tiny"} 12`, `rbee_gateway_limited_requests_total 0`,
	} {
		must.StrContains(t, metrics, line)
	}
	limiter.mu.Lock()
	defer limiter.mu.Unlock()
	must.Eq(t, "t1", limiter.keys[0])
	must.Eq(t, int64(len(body))/4+40, limiter.about[3])
}

// The number of series is bounded, however many tokens and models exist.
func TestUsageMetricsBounded(t *testing.T) {
	t.Parallel()
	m := NewMetrics()
	for i := range 3 * maxUsages {
		m.Used(fmt.Sprint("t", i), fmt.Sprint("m", i%150), inference.Usage{Prompt: 3, Completion: 2})
	}
	m.Limited()
	families, err := m.registry.Gather()
	must.NoError(t, err)
	for _, f := range families {
		switch f.GetName() {
		case "rbee_gateway_key_requests_total":
			must.Len(t, maxUsages+1, f.GetMetric())
			sum := 0.0
			for _, x := range f.GetMetric() {
				sum += x.GetCounter().GetValue()
			}
			must.Eq(t, float64(3*maxUsages), sum, must.Sprint("nothing is lost"))
		case "rbee_gateway_limited_requests_total":
			must.Eq(t, 1.0, f.GetMetric()[0].GetCounter().GetValue())
		}
	}
}
