package llamacpp

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/hybridgroup/yzma/pkg/llama"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// benchTokens is the length of an answer in the benchmarks.
const benchTokens = 256

// BenchmarkPlainLoop is llama.cpp without this package: what the others can at best reach.
func BenchmarkPlainLoop(b *testing.B) {
	w := startWorker(b, 1, 1024, "")
	m := w.served.model
	params := llama.ContextDefaultParams()
	params.NCtx, params.NThreads, params.NThreadsBatch, params.NOutputsMax = 1024, 1, 1, 1
	ctx, err := llama.InitFromModel(m.handle, params)
	must.NoError(b, err)
	defer func() { must.NoError(b, llama.Free(ctx)) }()
	mem, err := llama.GetMemory(ctx)
	must.NoError(b, err)
	sampler := llama.SamplerInitGreedy()
	defer llama.SamplerFree(sampler)
	prompt := llama.Tokenize(m.vocab, "<|im_start|>user\nTell me a story<|im_end|>\n<|im_start|>assistant\n", true, true)
	b.ReportAllocs()
	for b.Loop() {
		_, err := llama.MemorySeqRm(mem, 0, -1, -1)
		must.NoError(b, err)
		next := prompt
		for range benchTokens {
			code, err := llama.Decode(ctx, llama.BatchGetOne(next))
			must.NoError(b, err)
			must.Eq(b, int32(0), code)
			next = []llama.Token{llama.SamplerSample(sampler, ctx, -1)}
		}
	}
	b.ReportMetric(benchTokens*float64(b.N)/b.Elapsed().Seconds(), "tok/s")
}

// BenchmarkStream is the whole worker, over HTTP.
func BenchmarkStream(b *testing.B) {
	for _, slots := range []int{1, 8} {
		b.Run(fmt.Sprint(slots), func(b *testing.B) {
			w := startWorker(b, slots, 1024, "")
			body := question("Tell me a story", fmt.Sprintf(`,"stream":true,"ignore_eos":true,"max_tokens":%d`, benchTokens))
			b.ReportAllocs()
			b.ResetTimer()
			work := make(chan struct{})
			done := make(chan error)
			for range slots {
				go func() {
					var err error
					for range work {
						if e := w.read(b.Context(), body); e != nil {
							err = e
						}
					}
					done <- err
				}()
			}
			for range b.N * slots {
				work <- struct{}{}
			}
			close(work)
			for range slots {
				must.NoError(b, <-done)
			}
			b.ReportMetric(float64(benchTokens*b.N*slots)/b.Elapsed().Seconds(), "tok/s")
		})
	}
}

// read sends a request and reads its answer as a client does that does nothing with it.
func (w *testWorker) read(ctx context.Context, body string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return err
}

// BenchmarkToken is this package's own work for a token, without engine and sockets: from its piece
// to the bytes of its event.
func BenchmarkToken(b *testing.B) {
	req := newRequest()
	split := splitter{stops: []string{"\n\nUser:"}}
	srv := &server{}
	out := openai.NewEventWriter(discard{http.Header{}})
	f := newChatFormat("chatcmpl-0123456789abcdef", 1, "rbee-tiny")
	var events []event
	b.ReportAllocs()
	for b.Loop() {
		text, _ := split.push(" token")
		req.out.put(event{text: text, tokens: 1})
		<-req.out.ready
		events = req.out.take(events)
		for _, e := range events {
			if err := srv.send(out, f, req, e, false); err != nil {
				b.Fatal(err)
			}
		}
	}
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}
func (d discard) Flush()                      {}
