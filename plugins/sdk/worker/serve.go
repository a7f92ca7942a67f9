package worker

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rbee-project/rbee/plugins/sdk"
	workerv1 "github.com/rbee-project/rbee/proto/worker/v1"
)

// answerDelay lets the answer of Stop reach the host before the process ends.
const answerDelay = 100 * time.Millisecond

// Serve runs b as the plugin of this process and returns when the process should end. Call it last
// in main, followed only by cleanup. A process that no host started exits with a message.
func Serve(b Backend) {
	s := newServer(b, sdk.Logger("worker"))
	sdk.Serve(sdk.KindWorker, b, func(r grpc.ServiceRegistrar, p *sdk.Process) {
		s.end = func() { p.End(answerDelay) }
		workerv1.RegisterWorkerServiceServer(r, s)
	}, s.stop)
}

// Register serves b on r inside this process, for tests and for hosts that do not need a separate
// process. The returned function ends b's work and closes the data socket; it may be called more
// than once.
func Register(r grpc.ServiceRegistrar, b Backend, log hclog.Logger) (stop func(ctx context.Context, grace time.Duration) error) {
	s := newServer(b, log)
	register(r, s)
	return s.stop
}

func register(r grpc.ServiceRegistrar, s *server) {
	sdk.Register(r, s.backend)
	workerv1.RegisterWorkerServiceServer(r, s)
}

// server is the process's side of the worker protocol.
type server struct {
	workerv1.UnimplementedWorkerServiceServer
	backend Backend
	log     hclog.Logger
	end     func() // ends the process soon; nil if b runs in the host's process

	stopMu sync.Mutex // one Stop at a time

	mu      sync.Mutex // guards below
	spec    *StartSpec // nil before Start
	data    *dataServer
	failed  string // why Start failed
	stopped bool
}

func newServer(b Backend, log hclog.Logger) *server { return &server{backend: b, log: log} }

func (s *server) Fingerprint(_ *workerv1.FingerprintRequest, stream grpc.ServerStreamingServer[workerv1.FingerprintResponse]) error {
	var mu sync.Mutex // a stream takes one Send at a time
	err := s.backend.Fingerprint(stream.Context(), func(f Fingerprint) error {
		mu.Lock()
		defer mu.Unlock()
		return stream.Send(fingerprintToProto(f))
	})
	return sdk.ToStatus(err)
}

func (s *server) Start(req *workerv1.StartRequest, stream grpc.ServerStreamingServer[workerv1.StartResponse]) error {
	spec := startSpecFromProto(req)
	if err := checkStart(spec, req.GetDataSocket()); err != nil {
		return sdk.ToStatus(err)
	}
	data, err := s.begin(spec, req.GetDataSocket())
	spec.DataOpening = ""
	if err != nil {
		return sdk.ToStatus(err)
	}
	var mu sync.Mutex // guards over and the stream, which takes one Send at a time
	over := false
	handler, err := s.backend.Start(stream.Context(), spec, func(p Progress) error {
		mu.Lock()
		defer mu.Unlock()
		if over {
			return fmt.Errorf("progress after the end of Start: %w", sdk.ErrState)
		}
		return stream.Send(progressToProto(p))
	})
	mu.Lock()
	over = true
	mu.Unlock()
	if err == nil && handler == nil {
		err = errors.New("the plugin's Start returned neither a handler nor an error")
	}
	if err != nil {
		s.mu.Lock()
		s.failed = err.Error()
		s.mu.Unlock()
		data.close()
		return sdk.ToStatus(err)
	}
	data.ready(handler)
	return nil
}

// begin accepts the only Start of the process's life.
func (s *server) begin(spec StartSpec, socket string) (*dataServer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return nil, fmt.Errorf("start: the worker is stopped: %w", sdk.ErrState)
	case s.spec != nil:
		return nil, fmt.Errorf("start: the worker was started already, as %s with model %s: %w", s.spec.WorkerID, s.spec.ModelID, sdk.ErrState)
	}
	data, err := listenData(socket, spec.DataOpening, s.log.Named("http"))
	if err != nil {
		return nil, err
	}
	s.spec, s.data = &spec, data
	return data, nil
}

func checkStart(spec StartSpec, socket string) error {
	switch {
	case spec.WorkerID == "" || spec.Nonce == "":
		return fmt.Errorf("start: worker id and nonce must be given: %w", sdk.ErrInvalid)
	case spec.ModelID == "":
		return fmt.Errorf("start: the model id must be given: %w", sdk.ErrInvalid)
	case slices.ContainsFunc(spec.Files, func(f ModelFile) bool { return f.Role != RoleModel }):
		return fmt.Errorf("start: a file has a role that this worker does not know: %w", sdk.ErrInvalid)
	case spec.Slots < 1:
		return fmt.Errorf("start: slots is %d, it must be 1 or more: %w", spec.Slots, sdk.ErrInvalid)
	case spec.ContextTokens < 0 || spec.Threads < 0:
		return fmt.Errorf("start: context tokens (%d) and threads (%d) must not be negative: %w", spec.ContextTokens, spec.Threads, sdk.ErrInvalid)
	case len(spec.DataOpening) > MaxDataOpening:
		return fmt.Errorf("start: data opening has %d bytes, at most %d are possible: %w", len(spec.DataOpening), MaxDataOpening, sdk.ErrInvalid)
	case !filepath.IsAbs(socket):
		return fmt.Errorf("start: data socket %q is not an absolute path: %w", socket, sdk.ErrInvalid)
	}
	return nil
}

// Status adds what the SDK knows to the backend's status: the worker's identity, and whether it was
// never started, failed or stopped.
func (s *server) Status(ctx context.Context, req *workerv1.StatusRequest) (*workerv1.StatusResponse, error) {
	if b, ok := s.backend.(Sharer); ok && req.GetCpuWorkers() > 0 {
		b.Share(int(req.GetCpuWorkers()))
	}
	st, err := s.backend.Status(ctx)
	if err != nil {
		return nil, sdk.ToStatus(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spec == nil {
		st.State = StateIdle
	} else {
		st.WorkerID, st.Nonce, st.ModelID = s.spec.WorkerID, s.spec.Nonce, s.spec.ModelID
		st.DataGuarded = s.spec.DataOpening != ""
	}
	if s.failed != "" {
		st.State, st.Problem = StateFailed, s.failed
	}
	if s.stopped {
		st.State = StateStopped
	}
	return statusToProto(st), nil
}

func (s *server) Drain(ctx context.Context, _ *workerv1.DrainRequest) (*workerv1.DrainResponse, error) {
	if err := s.backend.Drain(ctx); err != nil {
		return nil, sdk.ToStatus(err)
	}
	return &workerv1.DrainResponse{}, nil
}

func (s *server) Stop(ctx context.Context, req *workerv1.StopRequest) (*workerv1.StopResponse, error) {
	err := s.stop(ctx, max(req.GetGrace().AsDuration(), 0))
	if s.end != nil {
		s.end() // even if the backend fails: a stopped worker is of no further use
	}
	if err != nil {
		return nil, sdk.ToStatus(err)
	}
	return &workerv1.StopResponse{}, nil
}

// stop ends the backend's work, then the data socket. It is idempotent.
func (s *server) stop(ctx context.Context, grace time.Duration) error {
	s.stopMu.Lock()
	defer s.stopMu.Unlock()
	s.mu.Lock()
	done, data := s.stopped, s.data
	s.mu.Unlock()
	if done {
		return nil
	}
	err := s.backend.Stop(ctx, grace)
	if data != nil {
		data.close()
	}
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	return err
}

// Client is a worker in another process. It is safe for concurrent use. Its errors match the values
// of package sdk with errors.Is.
type Client struct {
	*sdk.Client
	rpc        workerv1.WorkerServiceClient
	cpuWorkers atomic.Int32
}

// NewClient returns a client over conn. The caller closes conn.
func NewClient(conn grpc.ClientConnInterface) *Client {
	return &Client{Client: sdk.NewClient(conn), rpc: workerv1.NewWorkerServiceClient(sdk.BoundReplies(conn))}
}

// Fingerprint calls emit with every report until ctx ends or emit fails, and returns that error. It
// returns nil if the plugin ends the stream.
func (c *Client) Fingerprint(ctx context.Context, emit func(Fingerprint) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.rpc.Fingerprint(ctx, &workerv1.FingerprintRequest{})
	if err != nil {
		return sdk.FromStatus(err)
	}
	return sdk.Receive(stream, func(r *workerv1.FingerprintResponse) error { return emit(fingerprintFromProto(r)) })
}

// Start loads the model and returns once the worker serves on dataSocket, an absolute path in a
// private folder where nothing exists yet. progress may be nil; its error cancels the start. A
// cancelled start leaves a process of no further use.
func (c *Client) Start(ctx context.Context, spec StartSpec, dataSocket string, progress func(Progress) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req := startSpecToProto(spec)
	req.DataSocket = dataSocket
	stream, err := c.rpc.Start(ctx, req)
	if err != nil {
		return sdk.FromStatus(err)
	}
	return sdk.Receive(stream, func(r *workerv1.StartResponse) error {
		if progress == nil {
			return nil
		}
		return progress(progressFromProto(r))
	})
}

// Share makes every following Status report to the worker how many workers compute with the
// machine's processor.
func (c *Client) Share(cpuWorkers int) { c.cpuWorkers.Store(int32(cpuWorkers)) }

// Status returns the worker's state and load.
func (c *Client) Status(ctx context.Context) (Status, error) {
	r, err := c.rpc.Status(ctx, &workerv1.StatusRequest{CpuWorkers: c.cpuWorkers.Load()})
	if err != nil {
		return Status{}, sdk.FromStatus(err)
	}
	return statusFromProto(r), nil
}

// Drain makes the worker refuse new work and returns when the last running request has finished.
func (c *Client) Drain(ctx context.Context) error {
	_, err := c.rpc.Drain(ctx, &workerv1.DrainRequest{})
	return sdk.FromStatus(err)
}

// Stop ends the worker's work within grace. The process ends after the answer.
func (c *Client) Stop(ctx context.Context, grace time.Duration) error {
	_, err := c.rpc.Stop(ctx, &workerv1.StopRequest{Grace: durationpb.New(grace)})
	return sdk.FromStatus(err)
}
