package llamacpp

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/batch"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/dialogue"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// benchTokens is the length of an answer in the benchmarks.
const benchTokens = 256

// BenchmarkStream measures the whole worker, over HTTP.
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

// read sends a request and discards its answer as it arrives.
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

// BenchmarkToken measures the handler's own work per token, without engine and sockets: from the
// event to the bytes of a chunk.
func BenchmarkToken(b *testing.B) {
	req := newRequest()
	srv := &server{model: new(model)}
	out := openai.NewEventWriter(discard{http.Header{}})
	f := newChatFormat("chatcmpl-0123456789abcdef", 1, "rbee-tiny", nil, &speech{format: dialogue.Recognise(chatML, false, nil)})
	x := &answer{request: req, format: f}
	var events []event
	b.ReportAllocs()
	for b.Loop() {
		req.emit(batch.Event{Text: " token", Tokens: 1})
		<-req.out.ready
		events = req.out.take(events)
		for _, e := range events {
			if err := srv.send(out, x, e, nil); err != nil {
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
