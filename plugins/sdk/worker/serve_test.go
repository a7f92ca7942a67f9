package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/rbee-project/rbee/plugins/sdk"
)

// backend is a backend built from functions; a nil one does nothing.
type backend struct {
	fingerprint func(ctx context.Context, emit func(Fingerprint) error) error
	start       func(ctx context.Context, progress func(Progress) error) (http.Handler, error)
	status      func() (Status, error)
	drain       func() error
	stop        func(grace time.Duration) error
}

func (*backend) Info(context.Context) (sdk.Info, error)     { return sdk.Info{}, nil }
func (*backend) Schema(context.Context) (sdk.Schema, error) { return sdk.Schema{}, nil }
func (*backend) Configure(context.Context, sdk.Config) (sdk.Diagnostics, error) {
	return nil, nil
}

func (b *backend) Fingerprint(ctx context.Context, emit func(Fingerprint) error) error {
	return b.fingerprint(ctx, emit)
}

func (b *backend) Start(ctx context.Context, _ StartSpec, progress func(Progress) error) (http.Handler, error) {
	if b.start == nil {
		return http.NotFoundHandler(), nil
	}
	return b.start(ctx, progress)
}

func (b *backend) Status(context.Context) (Status, error) {
	if b.status == nil {
		return Status{State: StateReady}, nil
	}
	return b.status()
}

func (b *backend) Drain(context.Context) error {
	if b.drain == nil {
		return nil
	}
	return b.drain()
}

func (b *backend) Stop(_ context.Context, grace time.Duration) error {
	if b.stop == nil {
		return nil
	}
	return b.stop(grace)
}

// dial serves a backend in this process. ended counts the calls that would end the process.
func dial(t *testing.T, b Backend) (c *Client, ended *int) {
	t.Helper()
	s := newServer(b, hclog.NewNullLogger())
	ended = new(int)
	s.end = func() { *ended++ }
	return connect(t, func(r grpc.ServiceRegistrar) { register(r, s) }, s.stop), ended
}

func connect(t *testing.T, register func(grpc.ServiceRegistrar), stop func(context.Context, time.Duration) error) *Client {
	t.Helper()
	l := bufconn.Listen(1 << 16)
	g := grpc.NewServer()
	register(g)
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(l) }) // until it is stopped
	conn, err := grpc.NewClient("passthrough:x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	must.NoError(t, err)
	t.Cleanup(func() {
		must.NoError(t, conn.Close())
		_ = stop(context.Background(), 0) // the test checks its error
		g.Stop()
		wg.Wait()
	})
	return NewClient(conn)
}

func socket(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rbee") //nolint:usetesting // the path of a socket has 104 bytes at most
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	return filepath.Join(dir, "d")
}

func goodSpec() StartSpec {
	return StartSpec{WorkerID: "w", Nonce: "n", ModelPath: "/m.gguf", ModelID: "m", Slots: 1}
}

// ask sends a request to a data socket on a new connection.
func ask(t *testing.T, path string) (*http.Response, error) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://worker/", nil)
	must.NoError(t, err)
	return c.Do(req)
}

func TestStartIsChecked(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(s *StartSpec, socket *string){
		"no worker id":          func(s *StartSpec, _ *string) { s.WorkerID = "" },
		"no nonce":              func(s *StartSpec, _ *string) { s.Nonce = "" },
		"file of another role":  func(s *StartSpec, _ *string) { s.Files = []ModelFile{{Role: RoleModel}, {Role: "other"}} },
		"long data opening":     func(s *StartSpec, _ *string) { s.DataOpening = strings.Repeat("x", MaxDataOpening+1) },
		"no model id":           func(s *StartSpec, _ *string) { s.ModelID = "" },
		"no slots":              func(s *StartSpec, _ *string) { s.Slots = 0 },
		"negative context":      func(s *StartSpec, _ *string) { s.ContextTokens = -1 },
		"negative threads":      func(s *StartSpec, _ *string) { s.Threads = -1 },
		"no socket":             func(_ *StartSpec, p *string) { *p = "" },
		"relative socket":       func(_ *StartSpec, p *string) { *p = "d" },
		"no folder of a socket": func(_ *StartSpec, p *string) { *p = filepath.Join(*p, "x", "d") },
		"no folder but a file": func(_ *StartSpec, p *string) {
			must.NoError(t, os.WriteFile(*p, nil, 0o700))
			*p = filepath.Join(*p, "d")
		},
		"a folder of a group":  func(_ *StartSpec, p *string) { must.NoError(t, os.Chmod(filepath.Dir(*p), 0o750)) },
		"a folder of everyone": func(_ *StartSpec, p *string) { must.NoError(t, os.Chmod(filepath.Dir(*p), 0o701)) },
		"a socket in use":      func(_ *StartSpec, p *string) { must.NoError(t, os.WriteFile(*p, nil, 0o600)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _ := dial(t, &backend{start: func(context.Context, func(Progress) error) (http.Handler, error) {
				t.Error("it was started")
				return nil, errors.New("started")
			}})
			spec, path := goodSpec(), socket(t)
			change(&spec, &path)
			err := c.Start(t.Context(), spec, path, nil)
			must.ErrorIs(t, err, sdk.ErrInvalid)
			must.Eq(t, strings.HasSuffix(name, "socket") && !strings.HasPrefix(name, "no folder"), strings.Contains(err.Error(), "not an absolute path"))
			st, err := c.Status(t.Context())
			must.NoError(t, err)
			must.Eq(t, Status{State: StateIdle}, st)
		})
	}
}

// A worker accepts one Start in its life, binds its private socket at once, and reports loading
// until it has loaded.
func TestServes(t *testing.T) {
	t.Parallel()
	loading, loaded := make(chan struct{}), make(chan struct{})
	var stops []time.Duration
	c, ended := dial(t, &backend{
		start: func(_ context.Context, progress func(Progress) error) (http.Handler, error) {
			must.NoError(t, progress(Progress{Phase: "reading", Done: 1, Total: 2}))
			close(loading)
			<-loaded
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "served") }), nil
		},
		stop: func(grace time.Duration) error { stops = append(stops, grace); return nil },
	})
	path := socket(t)
	started := make(chan error, 1)
	var steps []Progress
	go func() {
		started <- c.Start(t.Context(), goodSpec(), path, func(p Progress) error { steps = append(steps, p); return nil })
	}()
	<-loading
	info, err := os.Stat(path)
	must.NoError(t, err)
	must.Eq(t, os.FileMode(0o600), info.Mode().Perm())
	resp, err := ask(t, path)
	must.NoError(t, err)
	text, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	must.NoError(t, resp.Body.Close())
	must.Eq(t, http.StatusServiceUnavailable, resp.StatusCode)
	must.True(t, json.Valid(text))
	must.StrContains(t, string(text), `"code":"loading"`)
	must.Eq(t, "1", resp.Header.Get("Retry-After"))
	close(loaded)
	must.NoError(t, <-started)
	must.Eq(t, []Progress{{Phase: "reading", Done: 1, Total: 2}}, steps)
	resp, err = ask(t, path)
	must.NoError(t, err)
	text, err = io.ReadAll(resp.Body)
	must.NoError(t, err)
	must.NoError(t, resp.Body.Close())
	must.Eq(t, "served", string(text))
	st, err := c.Status(t.Context())
	must.NoError(t, err)
	must.Eq(t, Status{State: StateReady, WorkerID: "w", Nonce: "n", ModelID: "m"}, st)

	must.ErrorIs(t, c.Start(t.Context(), goodSpec(), socket(t), nil), sdk.ErrState)
	must.NoError(t, c.Stop(t.Context(), time.Second))
	must.Eq(t, 1, *ended)
	st, err = c.Status(t.Context())
	must.NoError(t, err)
	must.Eq(t, StateStopped, st.State)
	_, err = ask(t, path)
	must.Error(t, err)
	_, err = os.Stat(path)
	must.ErrorIs(t, err, os.ErrNotExist)
	must.ErrorIs(t, c.Start(t.Context(), goodSpec(), path, nil), sdk.ErrState)
	must.NoError(t, c.Stop(t.Context(), -time.Hour))
	must.Eq(t, []time.Duration{time.Second}, stops) // the backend was stopped only once
	must.Eq(t, 2, *ended)
}

// A worker reports whether its data socket requires the host's secret; if so, it serves nothing
// without it.
func TestStartGuarded(t *testing.T) {
	t.Parallel()
	c, _ := dial(t, &backend{})
	spec, path := goodSpec(), socket(t)
	spec.DataOpening = strings.Repeat("s", 32)
	must.NoError(t, c.Start(t.Context(), spec, path, nil))
	st, err := c.Status(t.Context())
	must.NoError(t, err)
	must.True(t, st.DataGuarded)
	_, err = ask(t, path)
	must.Error(t, err)
}

// Hosts and plugins of different versions share these bounds.
func TestProtocolBounds(t *testing.T) {
	t.Parallel()
	must.Eq(t, []int{64, 256, 32, 32}, []int{MaxPrefixKey, MaxDataOpening, MaxCapabilities, MaxCapabilityBytes})
	must.Eq(t, []int{16 << 20, 256}, []int{MaxQueuedBody, MaxQueued})
}

// A type that serves models by name receives no file.
func TestStartByName(t *testing.T) {
	t.Parallel()
	c, _ := dial(t, &backend{})
	spec := goodSpec()
	spec.ModelPath = ""
	must.NoError(t, c.Start(t.Context(), spec, socket(t), nil))
}

// A worker that fails to load reports why, closes its socket, and is of no further use.
func TestStartFails(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		start func(progress func(Progress) error) (http.Handler, error)
		kind  error
		says  string
	}{
		"an error": {func(func(Progress) error) (http.Handler, error) {
			return nil, fmt.Errorf("the file is torn: %w", sdk.ErrIntegrity)
		}, sdk.ErrIntegrity, "the file is torn"},
		"neither handler nor error": {func(func(Progress) error) (http.Handler, error) { return nil, nil }, nil, "neither a handler nor an error"},
		"handler and error": {func(func(Progress) error) (http.Handler, error) {
			return http.NotFoundHandler(), fmt.Errorf("no memory: %w", sdk.ErrUnavailable)
		}, sdk.ErrUnavailable, "no memory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, _ := dial(t, &backend{start: func(_ context.Context, progress func(Progress) error) (http.Handler, error) {
				return tc.start(progress)
			}})
			path := socket(t)
			err := c.Start(t.Context(), goodSpec(), path, nil)
			must.ErrorContains(t, err, tc.says)
			if tc.kind != nil {
				must.ErrorIs(t, err, tc.kind)
			}
			st, err := c.Status(t.Context())
			must.NoError(t, err)
			must.Eq(t, StateFailed, st.State)
			must.StrContains(t, st.Problem, tc.says)
			_, err = os.Stat(path)
			must.ErrorIs(t, err, os.ErrNotExist)
			must.ErrorIs(t, c.Start(t.Context(), goodSpec(), path, nil), sdk.ErrState)
			must.NoError(t, c.Stop(t.Context(), 0))
			st, err = c.Status(t.Context())
			must.NoError(t, err)
			must.Eq(t, StateStopped, st.State)
		})
	}
}

// Progress fails after Start has returned; an error of the host's progress function ends the Start.
func TestProgress(t *testing.T) {
	t.Parallel()
	var late func(Progress) error
	c, _ := dial(t, &backend{start: func(_ context.Context, progress func(Progress) error) (http.Handler, error) {
		late = progress
		return http.NotFoundHandler(), progress(Progress{Phase: "one"})
	}})
	must.NoError(t, c.Start(t.Context(), goodSpec(), socket(t), nil))
	must.ErrorIs(t, late(Progress{Phase: "two"}), sdk.ErrState)

	ended := make(chan struct{})
	c, _ = dial(t, &backend{start: func(ctx context.Context, progress func(Progress) error) (http.Handler, error) {
		defer close(ended)
		if err := progress(Progress{Phase: "one"}); err != nil {
			return nil, err
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	enough := errors.New("enough")
	must.ErrorIs(t, c.Start(t.Context(), goodSpec(), socket(t), func(Progress) error { return enough }), enough)
	<-ended // the backend's context ended
}

// A worker that was stopped before it was started does not start.
func TestStopBeforeStart(t *testing.T) {
	t.Parallel()
	var grace []time.Duration
	c, _ := dial(t, &backend{stop: func(d time.Duration) error { grace = append(grace, d); return nil }})
	must.NoError(t, c.Stop(t.Context(), -time.Hour))
	must.Eq(t, []time.Duration{0}, grace)
	must.ErrorIs(t, c.Start(t.Context(), goodSpec(), socket(t), nil), sdk.ErrState)
}

// The backend's errors arrive with their kind.
func TestBackendErrors(t *testing.T) {
	t.Parallel()
	bad := fmt.Errorf("bad: %w", sdk.ErrUnavailable)
	devices := Fingerprint{Devices: []Device{{ID: "cpu"}}}
	c, ended := dial(t, &backend{
		fingerprint: func(_ context.Context, emit func(Fingerprint) error) error { return errors.Join(emit(devices), bad) },
		status:      func() (Status, error) { return Status{}, bad }, drain: func() error { return bad }, stop: func(time.Duration) error { return bad },
	})
	var got []Fingerprint
	must.ErrorIs(t, c.Fingerprint(t.Context(), func(f Fingerprint) error { got = append(got, f); return nil }), sdk.ErrUnavailable)
	must.Eq(t, []Fingerprint{devices}, got)
	_, err := c.Status(t.Context())
	must.ErrorIs(t, err, sdk.ErrUnavailable)
	must.ErrorIs(t, c.Drain(t.Context()), sdk.ErrUnavailable)
	must.ErrorIs(t, c.Stop(t.Context(), 0), sdk.ErrUnavailable)
	must.Eq(t, 1, *ended) // even though Stop failed

	c, _ = dial(t, &backend{fingerprint: func(_ context.Context, emit func(Fingerprint) error) error { return emit(devices) }})
	must.NoError(t, c.Fingerprint(t.Context(), func(Fingerprint) error { return nil }))
	ends := make(chan struct{})
	c, _ = dial(t, &backend{fingerprint: func(ctx context.Context, emit func(Fingerprint) error) error {
		defer close(ends)
		if err := emit(devices); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}})
	enough := errors.New("enough")
	must.ErrorIs(t, c.Fingerprint(t.Context(), func(Fingerprint) error { return enough }), enough)
	<-ends // the backend's context ended
	must.NoError(t, c.Drain(t.Context()))
}

// A backend in the host's own process is ended by the function that Register returns.
func TestRegister(t *testing.T) {
	t.Parallel()
	stops := 0
	b := &backend{stop: func(time.Duration) error { stops++; return nil }}
	var stop func(context.Context, time.Duration) error
	c := connect(t, func(r grpc.ServiceRegistrar) { stop = Register(r, b, hclog.NewNullLogger()) }, func(context.Context, time.Duration) error { return nil })
	_, err := c.Info(t.Context())
	must.NoError(t, err)
	path := socket(t)
	must.NoError(t, c.Start(t.Context(), goodSpec(), path, nil))
	must.NoError(t, stop(t.Context(), 0))
	must.NoError(t, stop(t.Context(), 0))
	must.One(t, stops)
	_, err = os.Stat(path)
	must.ErrorIs(t, err, os.ErrNotExist)
}

// noStreams is a connection on which no stream can begin.
type noStreams struct{ grpc.ClientConnInterface }

func (noStreams) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, sdk.ToStatus(fmt.Errorf("too many: %w", sdk.ErrUnavailable))
}

// An error that prevents a stream from beginning is converted like the plugin's own errors.
func TestNoStream(t *testing.T) {
	t.Parallel()
	c := NewClient(noStreams{})
	must.ErrorIs(t, c.Fingerprint(t.Context(), func(Fingerprint) error { return nil }), sdk.ErrUnavailable)
	must.ErrorIs(t, c.Start(t.Context(), StartSpec{}, "/s", nil), sdk.ErrUnavailable)
}

// sharer is a backend that records its calls of Share.
type sharer struct {
	backend
	told []int
}

func (s *sharer) Share(cpuWorkers int) { s.told = append(s.told, cpuWorkers) }

// A Sharer receives the number of workers with each Status, once its host has reported one.
func TestStatusSharesWorkers(t *testing.T) {
	t.Parallel()
	b := &sharer{}
	c, _ := dial(t, b)
	for _, n := range []int{0, 3, 2} {
		c.Share(n)
		_, err := c.Status(t.Context())
		must.NoError(t, err)
	}
	must.Eq(t, []int{3, 2}, b.told)
	c, _ = dial(t, &backend{})
	c.Share(3)
	_, err := c.Status(t.Context())
	must.NoError(t, err)
}
