package gateway

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// The benchmarks compare a worker asked directly over its unix socket with the same worker behind
// the gateway, alternating requests so that both see the same machine load. The direct client takes
// one hop, the other takes two.

func benchRig(b *testing.B, h http.HandlerFunc) (direct, through func(body string) (*http.Response, error)) {
	r := newRig(b, nil)
	r.serve("w1", h)
	unix := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return r.dialWorker(ctx, r.router.workers[0])
	}}
	b.Cleanup(unix.CloseIdleConnections)
	ask := func(c *http.Client, url string) func(string) (*http.Response, error) {
		return func(body string) (*http.Response, error) {
			return c.Post(url+"/v1/chat/completions", "application/json", strings.NewReader(body))
		}
	}
	return ask(&http.Client{Transport: unix}, "http://worker"), ask(r.client, r.url)
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// BenchmarkUnary measures the time added to a small answer: the goal is a median of at most 200 µs.
func BenchmarkUnary(b *testing.B) {
	for name, size := range map[string]int{"1KB": 1 << 10, "100KB": 100 << 10} {
		b.Run(name, func(b *testing.B) {
			answer := `{"choices":[],"pad":"` + strings.Repeat("a", 1<<10) + `"}`
			direct, through := benchRig(b, func(w http.ResponseWriter, req *http.Request) {
				_, _ = io.Copy(io.Discard, req.Body)
				answerJSON(200, answer)(w, req)
			})
			body := `{"model":"tiny","messages":[{"role":"user","content":"` + strings.Repeat("b", size) + `"}]}`
			run := func(ask func(string) (*http.Response, error)) time.Duration {
				start := time.Now()
				resp, err := ask(body)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				return time.Since(start)
			}
			run(direct)
			run(through)
			var d, t []time.Duration
			for b.Loop() {
				d, t = append(d, run(direct)), append(t, run(through))
			}
			b.ReportMetric(float64(median(d).Microseconds()), "direct-p50-µs")
			b.ReportMetric(float64(median(t).Microseconds()), "through-p50-µs")
			b.ReportMetric(float64((median(t) - median(d)).Microseconds()), "added-p50-µs")
		})
	}
}

// BenchmarkStream measures the throughput of a stream through the gateway relative to the direct
// one. The goal is at least 0.99 when the worker sets the pace, as an engine does; without a pace
// it shows the cost of the relay. BenchmarkTranslated measures what a token of a translated stream
// costs beyond one that passes through, in processor time of the whole process: worker and client
// are the same in both.
func BenchmarkTranslated(b *testing.B) {
	const tokens = 20_000
	var events strings.Builder
	events.WriteString(roleEvent)
	for i := range tokens {
		events.WriteString(tokenEvent(i))
	}
	events.WriteString(`data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n" + usageEvent + doneEvent)
	stream := []byte(events.String())
	r := newRig(b, nil)
	r.serve("w1", func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		for rest := stream; len(rest) > 0; { // several tokens per write, as under load
			n := min(len(rest), 1<<10)
			_, _ = w.Write(rest[:n])
			_ = http.NewResponseController(w).Flush()
			rest = rest[n:]
		}
	})
	cpu := func() time.Duration {
		var u syscall.Rusage
		must.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	perToken := func(path, body string) time.Duration {
		before := cpu()
		resp, err := r.client.Post(r.url+path, "application/json", strings.NewReader(body))
		must.NoError(b, err)
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return (cpu() - before) / tokens
	}
	dialects := map[string][2]string{
		"responses": {"/v1/responses", `{"model":"tiny","input":"hi","stream":true,"store":false}`},
		"anthropic": {"/v1/messages", `{"model":"tiny","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"hi"}]}`},
		"ollama":    {"/api/chat", askTiny},
	}
	const rounds = 9
	more := map[string][]time.Duration{}
	var plain []time.Duration
	for b.Loop() {
		for range rounds {
			through := perToken("/v1/chat/completions", streamAsk)
			plain = append(plain, through)
			for name, d := range dialects {
				more[name] = append(more[name], perToken(d[0], d[1])-through)
			}
		}
	}
	b.ReportMetric(float64(median(plain).Nanoseconds()), "passthrough-ns/token")
	for name, list := range more {
		b.ReportMetric(float64(median(list).Nanoseconds()), name+"-more-ns/token")
		if m := median(list); m > 15*time.Microsecond {
			b.Errorf("%s costs %s more a token than passthrough", name, m)
		}
	}
}

func BenchmarkStream(b *testing.B) {
	for _, c := range []struct {
		name   string
		pace   time.Duration
		tokens int
	}{
		{"5000-per-second", 200 * time.Microsecond, 500},
		{"1000-per-second", time.Millisecond, 200},
		{"no-pace", 0, 2000},
		{"one-token", 0, 1}, // its added-ttft excludes the wake-up of processors that a paced stream leaves idle
	} {
		b.Run(c.name, func(b *testing.B) {
			event := []byte(tokenEvent(1))
			direct, through := benchRig(b, func(w http.ResponseWriter, req *http.Request) {
				_, _ = io.Copy(io.Discard, req.Body)
				w.Header().Set("Content-Type", "text/event-stream")
				flush := http.NewResponseController(w)
				start := time.Now()
				for i := range c.tokens {
					if wait := time.Until(start.Add(time.Duration(i) * c.pace)); wait > 0 {
						time.Sleep(wait) // an engine's pace, in a benchmark
					}
					_, _ = w.Write(event)
					_ = flush.Flush()
				}
				_, _ = io.WriteString(w, doneEvent)
			})
			type result struct {
				first, all time.Duration
			}
			run := func(ask func(string) (*http.Response, error)) result {
				start := time.Now()
				resp, err := ask(streamAsk)
				if err != nil {
					b.Fatal(err)
				}
				var res result
				n := 0
				for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
					if n++; n == 1 {
						res.first = time.Since(start)
					}
				}
				resp.Body.Close()
				if want := 2*c.tokens + 2; n != want {
					b.Fatalf("%d lines of %d", n, want)
				}
				res.all = time.Since(start)
				return res
			}
			run(direct)
			run(through)
			var df, tf, da, ta []time.Duration
			for b.Loop() {
				d, t := run(direct), run(through)
				df, da, tf, ta = append(df, d.first), append(da, d.all), append(tf, t.first), append(ta, t.all)
			}
			b.ReportMetric(float64(c.tokens)/median(da).Seconds(), "direct-tok/s")
			b.ReportMetric(float64(c.tokens)/median(ta).Seconds(), "through-tok/s")
			b.ReportMetric(median(da).Seconds()/median(ta).Seconds(), "ratio")
			b.ReportMetric(float64((median(tf) - median(df)).Microseconds()), "added-ttft-p50-µs")
		})
	}
}
