package gateway

import (
	"io"
	"net/http"
	"sync"

	"github.com/rbee-project/rbee/core"
)

// Within answers inference requests from within this process, as the API does for a token that may infer: whoever has it has been let in already. A request
// is one of an HTTP client's to POST /v1/chat/completions; other routes are not there.
func (g *Gateway) Within() http.RoundTripper { return within{g} }

type within struct{ g *Gateway }

// RoundTrip implements http.RoundTripper. What answers the request has ended when the body of the response is closed.
func (t within) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil || r.Method != http.MethodPost || r.URL.Path != "/v1/chat/completions" {
		return nil, core.Errorf("", core.Unsupported, "%s %s is not answered within the process", r.Method, clip(r.URL.Path, 100))
	}
	reader, writer := io.Pipe()
	a := &innerAnswer{header: http.Header{}, begun: make(chan struct{}), w: writer}
	in := r.Clone(r.Context())
	in.RequestURI = r.URL.RequestURI()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer r.Body.Close()
		defer func() {
			if v := recover(); v != nil { // as the server does: the answer is cut
				_ = writer.CloseWithError(io.ErrUnexpectedEOF)
				a.WriteHeader(http.StatusInternalServerError)
			}
		}()
		w := &response{inner: a, c: http.NewResponseController(a), limit: t.g.o.WriteTimeout, id: requestID(r), route: "POST /v1/chat/completions"}
		w.Header().Set("X-Request-Id", w.id)
		t.g.answer(w, in, local((*Gateway).chat))
		a.WriteHeader(http.StatusOK)
		_ = writer.Close()
	})
	<-a.begun
	return &http.Response{
		StatusCode: a.status, Status: http.StatusText(a.status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: a.header, ContentLength: -1,
		Body: innerBody{reader, &wg}, Request: r,
	}, nil
}

// innerAnswer is the writer of an answer that stays in the process.
type innerAnswer struct {
	header http.Header
	status int
	once   sync.Once
	begun  chan struct{} // closed when the status is there
	w      *io.PipeWriter
}

func (a *innerAnswer) Header() http.Header { return a.header }

func (a *innerAnswer) WriteHeader(status int) {
	a.once.Do(func() {
		a.status = status
		close(a.begun)
	})
}

func (a *innerAnswer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.w.Write(b)
}

// Flush implements http.Flusher: a write is with its reader already.
func (a *innerAnswer) Flush() {}

type innerBody struct {
	*io.PipeReader
	wg *sync.WaitGroup
}

func (b innerBody) Close() error {
	err := b.PipeReader.Close()
	b.wg.Wait()
	return err
}
