package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
	"github.com/rbee-project/rbee/core/inference"
)

const testBoundary = "xYz"

// zeros is an endless file.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// longForm returns a form with a file of the given size between two groups of fields, and its
// length.
func longForm(before string, file int64, after string) (body func() io.Reader, size int64) {
	head := before + "--" + testBoundary + "\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n"
	tail := "\r\n" + after + "--" + testBoundary + "--\r\n"
	return func() io.Reader {
		return io.MultiReader(strings.NewReader(head), io.LimitReader(zeros{}, file), strings.NewReader(tail))
	}, int64(len(head)+len(tail)) + file
}

func formField(name, value string) string {
	return "--" + testBoundary + "\r\nContent-Disposition: form-data; name=\"" + name + "\"\r\n\r\n" + value + "\r\n"
}

func (r *rig) postForm(ctx context.Context, body io.Reader, size int64, header ...string) (*http.Response, string, error) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url+"/v1/audio/transcriptions", io.NopCloser(body))
	must.NoError(r.t, err)
	req.ContentLength = size
	req.Header.Set("Content-Type", "multipart/form-data; boundary="+testBoundary)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return resp, string(answer), err
}

// spools counts the files that hold forms.
type spools struct {
	t    *testing.T
	full int64 // capacity of one, in bytes; 0: unlimited

	mu   sync.Mutex // guards below
	made int
	open int
}

func (s *spools) make() (SpoolFile, error) {
	f, err := os.CreateTemp(s.t.TempDir(), "form")
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made++
	s.open++
	return &spool{File: f, s: s, left: s.full}, nil
}

func (s *spools) counts() (made, open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.made, s.open
}

type spool struct {
	*os.File
	s    *spools
	left int64
}

func (f *spool) Write(p []byte) (int, error) {
	if f.s.full > 0 {
		if f.left -= int64(len(p)); f.left < 0 {
			return 0, &os.PathError{Op: "write", Path: f.Name(), Err: syscall.ENOSPC}
		}
	}
	return f.File.Write(p)
}

func (f *spool) Close() error {
	f.s.mu.Lock()
	f.s.open--
	f.s.mu.Unlock()
	return f.File.Close()
}

// TestLongForms sends 64 MiB, with the model before and after the file. The forms arrive unchanged
// and take less than 2 MiB, including everything that client, queen and worker allocate meanwhile.
func TestLongForms(t *testing.T) { // not parallel: it counts allocations
	const size, most = 64 << 20, 2 << 20
	s := &spools{t: t}
	r := newRig(t, func(o *rigOptions) { o.Spool = s.make })
	var sum [sha256.Size]byte
	var held, kept int64
	used := func(b *bodies) int64 { b.mu.Lock(); defer b.mu.Unlock(); return b.used }
	r.serve("w1", func(w http.ResponseWriter, q *http.Request) {
		h := sha256.New()
		_, _ = io.CopyN(h, q.Body, size/2)
		held, kept = used(r.bodies), used(r.spooled)
		_, _ = io.CopyBuffer(h, q.Body, make([]byte, 8<<10))
		h.Sum(sum[:0])
		answerJSON(200, `{"text":"`+q.Header.Get("Content-Type")[:10]+`"}`)(w, q)
	})
	for name, c := range map[string]struct {
		before, after string
		spooled       bool
	}{
		"first": {before: formField("model", "tiny")},
		"last":  {after: formField("model", "tiny"), spooled: true},
	} {
		body, length := longForm(c.before, size, c.after)
		want := sha256.New()
		_, err := io.Copy(want, body())
		must.NoError(t, err)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		resp, answer, err := r.postForm(t.Context(), body(), length)
		runtime.ReadMemStats(&after)
		must.NoError(t, err, must.Sprint(name))
		must.Eq(t, 200, resp.StatusCode, must.Sprint(name, answer))
		must.Eq(t, `{"text":"multipart/"}`, strings.TrimSpace(answer))
		must.Eq(t, want.Sum(nil), sum[:], must.Sprint(name))
		must.Less(t, most, int(after.TotalAlloc-before.TotalAlloc), must.Sprint(name))
		must.Less(t, 1<<20, held, must.Sprint(name))
		if c.spooled {
			must.Between(t, size-formMemory, kept, length, must.Sprint(name))
		} else {
			must.Zero(t, kept, must.Sprint(name))
		}
		made, open := s.counts()
		must.Eq(t, c.spooled, made > 0)
		must.Zero(t, open)
		must.Zero(t, used(r.spooled))
		s.made = 0
	}
}

// TestFormsWithoutRoom checks that forms whose model comes late are refused if there is no room for
// them, before any worker is asked, and without revealing file paths.
func TestFormsWithoutRoom(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*rigOptions)
		full   int64
		status int
		code   string
	}{
		"disk":    {func(*rigOptions) {}, 1 << 20, 507, "disk_full"},
		"budget":  {func(o *rigOptions) { o.FormDisk, o.BodyWait = 1<<20, time.Millisecond }, 0, 503, codeOverloaded},
		"memory":  {func(o *rigOptions) { o.BodyMemory, o.BodyWait = 100<<10, time.Millisecond }, 0, 503, codeOverloaded},
		"nowhere": {func(o *rigOptions) { o.Spool = nil }, 0, 413, "request_too_large"},
		"no file": {func(o *rigOptions) { o.Spool = func() (SpoolFile, error) { return nil, errors.New("open " + leaky) } }, 0, 507, "disk_full"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &spools{t: t, full: c.full}
			r := newRig(t, func(o *rigOptions) { o.Spool = s.make; c.change(o) })
			asked := false
			r.serve("w1", func(http.ResponseWriter, *http.Request) { asked = true })
			body, length := longForm("", 4<<20, formField("model", "tiny"))
			resp, answer, err := r.postForm(t.Context(), body(), length)
			must.NoError(t, err)
			must.Eq(t, c.status, resp.StatusCode, must.Sprint(answer))
			must.Eq(t, c.code, code(errorIn(t, answer)))
			must.StrNotContains(t, answer, "/")
			must.False(t, asked)
			eventually(t, "the form is gone", func() bool { _, open := s.counts(); return open == 0 })
		})
	}
}

// TestFormsGivenUp disconnects clients while their form is held and while it is passed on.
func TestFormsGivenUp(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]string{"held": "", "passed on": formField("model", "tiny")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &spools{t: t}
			r := newRig(t, func(o *rigOptions) { o.Spool = s.make })
			cut := make(chan error, 1)
			r.serve("w1", func(_ http.ResponseWriter, q *http.Request) {
				_, err := io.Copy(io.Discard, q.Body)
				cut <- err
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			body, length := longForm(before, 8<<20, formField("model", "tiny"))
			from, to := io.Pipe()
			go func() {
				_, _ = io.CopyN(to, body(), 4<<20)
				cancel()
				_ = to.CloseWithError(context.Canceled)
			}()
			_, _, err := r.postForm(ctx, from, length)
			must.Error(t, err)
			if before != "" {
				must.Error(t, <-cut)
			}
			eventually(t, "the form is gone", func() bool {
				_, open := s.counts()
				r.spooled.mu.Lock()
				defer r.spooled.mu.Unlock()
				return open == 0 && r.spooled.used == 0 && r.empty()
			})
			made, _ := s.counts()
			must.Eq(t, before == "", made == 1)
			must.SliceEmpty(t, r.router.failures()) // not the worker's failure
		})
	}
}

// TestFormsCheckedInTransit checks that faults in a form whose beginning a worker already has are
// refused: the worker gets no complete form.
func TestFormsCheckedInTransit(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rigOptions) { o.MaxFormBytes = 4 << 20 })
	var got []error
	var mu sync.Mutex
	r.serve("w1", func(_ http.ResponseWriter, q *http.Request) {
		_, err := io.Copy(io.Discard, q.Body)
		mu.Lock()
		defer mu.Unlock()
		got = append(got, err)
	})
	model := formField("model", "tiny")
	cases := map[string]struct {
		file   int64
		after  string
		status int
		says   string
		sized  bool
	}{
		"model twice": {1 << 20, formField("model", "large"), 400, "twice", true},
		"stream":      {1 << 20, formField("stream", "true"), 400, "stream", true},
		"cut":         {1 << 20, "--" + testBoundary + "\r\nContent-", 400, "whole form", true},
		"long header": {1 << 20, "--" + testBoundary + "\r\nX-A: " + strings.Repeat("a", 2*maxPartHeader) + "\r\n\r\n", 400, "whole form", true},
		"too large":   {5 << 20, "", 413, "larger", false},
	}
	for name, c := range cases {
		body, length := longForm(model, c.file, c.after)
		if !c.sized {
			length = -1
		}
		resp, answer, err := r.postForm(t.Context(), body(), length)
		must.NoError(t, err, must.Sprint(name))
		must.Eq(t, c.status, resp.StatusCode, must.Sprint(name, answer))
		must.StrContains(t, answer, c.says, must.Sprint(name))
	}
	eventually(t, "the worker was told", func() bool { mu.Lock(); defer mu.Unlock(); return len(got) == len(cases) })
	for _, err := range got {
		must.Error(t, err)
	}
	must.SliceEmpty(t, r.router.failures())
}

// TestFormsAskAgain checks that a form is retried at another worker only while all of it is held.
func TestFormsAskAgain(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before, after string
		file          int64
		first         func(r *rig) // the worker that is asked first
		status        int
	}{
		"short, refused": {formField("model", "tiny"), "", 1 << 10, func(r *rig) { r.serve("w1", refusing(503, "", "", "draining")) }, 200},
		"late, refused":  {"", formField("model", "tiny"), 1 << 20, func(r *rig) { r.serve("w1", refusing(503, "", "", "draining")) }, 200},
		"late, lost":     {"", formField("model", "tiny"), 1 << 20, func(r *rig) { r.raw("w1", func(net.Conn) {}) }, 200},
		"long, refused":  {formField("model", "tiny"), "", 1 << 20, func(r *rig) { r.serve("w1", refusing(503, "", "", "draining")) }, 503},
		"long, lost":     {formField("model", "tiny"), "", 1 << 20, func(r *rig) { r.raw("w1", func(net.Conn) {}) }, 502},
		"long, unreached": {formField("model", "tiny"), "", 1 << 20, func(r *rig) {
			r.add(core.Worker{ID: "w1", Hive: "h1", Model: "tiny", State: core.WorkerReady}, filepath.Join(r.dir, "nothing"))
		}, 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &spools{t: t}
			r := newRig(t, func(o *rigOptions) { o.Spool = s.make })
			c.first(r)
			body, length := longForm(c.before, c.file, c.after)
			want, err := io.ReadAll(body())
			must.NoError(t, err)
			r.serve("w2", func(w http.ResponseWriter, q *http.Request) {
				got, _ := io.ReadAll(q.Body)
				if !bytes.Equal(want, got) {
					t.Errorf("the worker got %d bytes", len(got))
				}
				answerJSON(200, `{"text":"a"}`)(w, q)
			})
			resp, answer, err := r.postForm(t.Context(), body(), length)
			must.NoError(t, err)
			must.Eq(t, c.status, resp.StatusCode, must.Sprint(answer))
		})
	}
}

// TestPackedForms decompresses forms, whose length is unknown beforehand.
func TestPackedForms(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	body, _ := longForm(formField("model", "tiny"), 1<<20, "")
	want, err := io.ReadAll(body())
	must.NoError(t, err)
	r.serve("w1", func(w http.ResponseWriter, q *http.Request) {
		got, _ := io.ReadAll(q.Body)
		answerJSON(200, map[bool]string{true: `{"text":"same"}`, false: `{"text":"other"}`}[bytes.Equal(want, got)])(w, q)
	})
	for _, encoding := range []string{"gzip", "zstd"} {
		sent := compress(t, encoding, want)
		resp, answer, err := r.postForm(t.Context(), bytes.NewReader(sent), int64(len(sent)), "Content-Encoding", encoding)
		must.NoError(t, err)
		must.Eq(t, 200, resp.StatusCode, must.Sprint(encoding, answer))
		must.StrContains(t, answer, "same", must.Sprint(encoding))
	}
}

// TestFormsOfLimitedTokens applies the models and limits of a token to forms.
func TestFormsOfLimitedTokens(t *testing.T) {
	t.Parallel()
	limiter := &fakeLimiter{refuse: time.Second}
	r := newRig(t, func(o *rigOptions) {
		o.Auth = fakecluster.New(fakecluster.State{Secrets: map[string]core.Token{"few": {ID: "t1", Kind: core.TokenAPI, Scopes: []core.Scope{core.ScopeInfer}, Models: []string{"other"}}}})
	})
	r.cluster.Change(func(s *fakecluster.State) { s.Models = []core.Model{{ID: "tiny"}, {ID: "other"}} })
	asked := false
	r.serve("w1", func(w http.ResponseWriter, q *http.Request) { asked = true; answerJSON(200, `{"text":"a"}`)(w, q) })
	body, length := longForm(formField("model", "tiny"), 10, "")
	resp, answer, err := r.postForm(t.Context(), body(), length, "Authorization", "Bearer few")
	must.NoError(t, err)
	must.Eq(t, 404, resp.StatusCode, must.Sprint(answer))
	must.Eq(t, "model_not_found", code(errorIn(t, answer)))
	must.False(t, asked)

	r = newRig(t, func(o *rigOptions) {
		o.Auth = fakecluster.New(fakecluster.State{Secrets: map[string]core.Token{"limited": {ID: "t1", Kind: core.TokenAPI, Scopes: []core.Scope{core.ScopeInfer}}}})
		o.inf.Limiter = limiter
	})
	resp, answer, err = r.postForm(t.Context(), body(), length, "Authorization", "Bearer limited")
	must.NoError(t, err)
	must.Eq(t, 429, resp.StatusCode, must.Sprint(answer))
}

// FuzzForm reads forms in pieces. The bytes pass through unchanged, and an accepted form names the
// model that the standard library finds in it.
func FuzzForm(f *testing.F) {
	body, _ := longForm(formField("model", "tiny"), 100, formField("stream", "false"))
	whole, _ := io.ReadAll(body())
	f.Add(whole, uint8(1))
	f.Add(whole[:len(whole)-9], uint8(7))
	body, _ = longForm("", 20, formField("model", "a")+formField("model", "b"))
	whole, _ = io.ReadAll(body())
	f.Add(whole, uint8(200))
	f.Add([]byte("preamble\r\n--xYz\r\n\r\n--xYz--\r\nepilogue"), uint8(3))
	g := New(Options{Cluster: newCluster(), Inference: inference.New(inference.Options{}), Jobs: &fakeJobs{}, Spool: func() (SpoolFile, error) { return nil, errors.New("none") }})
	f.Fuzz(func(t *testing.T, in []byte, piece uint8) {
		if len(in) > formMemory {
			return
		}
		w := newResponse(discardResponse{http.Header{}}, time.Minute)
		defer w.body.release()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/", io.NopCloser(&inPieces{in, int(piece) + 1}))
		must.NoError(t, err)
		r.ContentLength = -1
		form, err := g.openForm(w, r, testBoundary)
		must.NoError(t, err)
		defer form.close()
		if err := form.find(); err != nil {
			if k := core.KindOf(err); k != core.Invalid && status(err) != http.StatusNotImplemented {
				t.Fatalf("%v is not about the request", err)
			}
			return
		}
		for range 2 {
			var out bytes.Buffer
			_, err = form.WriteTo(&out)
			must.NoError(t, err)
			must.Eq(t, in, out.Bytes())
		}
		must.Eq(t, int64(len(in)), form.Size())
		std, err := multipart.NewReader(bytes.NewReader(in), testBoundary).ReadForm(1 << 20)
		if err != nil {
			return // it decodes files, and requires a name for every part
		}
		defer func() { _ = std.RemoveAll() }()
		if names := std.Value["model"]; len(names) > 0 && names[0] != form.model {
			t.Fatalf("%q in place of %q", form.model, names)
		}
	})
}

func status(err error) int { _, a := envelope(err); return a.status }

// inPieces returns n bytes per read.
type inPieces struct {
	left []byte
	n    int
}

func (p *inPieces) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.n)], p.left)
	p.left = p.left[n:]
	return n, nil
}

type discardResponse struct{ h http.Header }

func (d discardResponse) Header() http.Header         { return d.h }
func (d discardResponse) Write(b []byte) (int, error) { return len(b), nil }
func (d discardResponse) WriteHeader(int)             {}
