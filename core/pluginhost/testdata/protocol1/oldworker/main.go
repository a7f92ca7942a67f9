// Command oldworker is a worker type built from the first publication of plugin protocol 1.
// OLD_PROTOCOLS lists the versions of the protocol that it serves; the default is 1.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pluginv1 "github.com/rbee-project/rbee/core/pluginhost/testdata/protocol1/plugin/v1"
	workerv1 "github.com/rbee-project/rbee/core/pluginhost/testdata/protocol1/worker/v1"
)

func main() {
	signal.Ignore(syscall.SIGPIPE)
	if os.Getenv("RBEE_PLUGIN_TETHER") == "1" {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
	}
	o := &old{}
	sets := map[int]goplugin.PluginSet{}
	versions := os.Getenv("OLD_PROTOCOLS")
	if versions == "" {
		versions = "1"
	}
	for v := range strings.SplitSeq(versions, ",") {
		n, err := strconv.Atoi(v)
		if err != nil {
			panic(err)
		}
		sets[n] = goplugin.PluginSet{"worker": o}
	}
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  goplugin.HandshakeConfig{MagicCookieKey: "RBEE_PLUGIN", MagicCookieValue: "4f1c2a7e-rbee-plugin"},
		VersionedPlugins: sets,
		GRPCServer:       goplugin.DefaultGRPCServer,
	})
}

type old struct {
	goplugin.NetRPCUnsupportedPlugin
	pluginv1.UnimplementedPluginServiceServer
	workerv1.UnimplementedWorkerServiceServer

	greeting string
	spec     atomic.Pointer[workerv1.StartRequest]
	draining atomic.Bool
	running  sync.WaitGroup
	tokens   atomic.Int64
}

func (o *old) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	pluginv1.RegisterPluginServiceServer(s, o)
	workerv1.RegisterWorkerServiceServer(s, o)
	return nil
}

func (*old) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("this side serves")
}

func (*old) Info(context.Context, *pluginv1.InfoRequest) (*pluginv1.InfoResponse, error) {
	return &pluginv1.InfoResponse{Name: "old", Kind: "worker", Version: "1.0.0", Summary: "Speaks protocol 1.", Formats: []string{"gguf"}}, nil
}

func (*old) Schema(context.Context, *pluginv1.SchemaRequest) (*pluginv1.SchemaResponse, error) {
	return &pluginv1.SchemaResponse{Schema: &pluginv1.Schema{Attributes: []*pluginv1.Attribute{
		{Name: "greeting", Type: "string", DefaultJson: []byte(`"hello"`), Doc: "What it says first."},
	}}}, nil
}

func (o *old) Configure(_ context.Context, r *pluginv1.ConfigureRequest) (*pluginv1.ConfigureResponse, error) {
	var v struct {
		Greeting string `json:"greeting"`
	}
	if err := json.Unmarshal(r.GetConfigJson(), &v); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	o.greeting = v.Greeting
	return &pluginv1.ConfigureResponse{}, nil
}

func (*old) Fingerprint(_ *workerv1.FingerprintRequest, stream grpc.ServerStreamingServer[workerv1.FingerprintResponse]) error {
	for {
		err := stream.Send(&workerv1.FingerprintResponse{Devices: []*workerv1.Device{{Id: "old:0", Kind: "old", Name: "An old device"}}})
		if err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-time.After(20 * time.Second):
		}
	}
}

func (o *old) Start(r *workerv1.StartRequest, stream grpc.ServerStreamingServer[workerv1.StartResponse]) error {
	if _, err := os.Stat(r.GetModelPath()); err != nil {
		return status.Error(codes.NotFound, err.Error())
	}
	l, err := net.Listen("unix", r.GetDataSocket())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	o.spec.Store(r)
	go func() { _ = http.Serve(l, http.HandlerFunc(o.answer)) }()
	return stream.Send(&workerv1.StartResponse{Phase: "reading", Done: 1, Total: 1, Unit: "bytes"})
}

func (o *old) answer(w http.ResponseWriter, r *http.Request) {
	o.running.Add(1)
	defer o.running.Done()
	if o.draining.Load() {
		http.Error(w, `{"error":{"message":"draining"}}`, http.StatusServiceUnavailable)
		return
	}
	var v struct {
		Messages []struct {
			Content string `json:"content"`
		} `json:"messages"`
	}
	if err := json.NewDecoder(r.Body).Decode(&v); err != nil || len(v.Messages) == 0 {
		http.Error(w, `{"error":{"message":"no messages"}}`, http.StatusBadRequest)
		return
	}
	o.tokens.Add(1)
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"object":"chat.completion","model":%q,"choices":[{"index":0,"message":{"role":"assistant","content":%q},"finish_reason":"stop"}]}`,
		o.spec.Load().GetModelId(), o.greeting+" "+v.Messages[0].Content)
}

func (o *old) Status(context.Context, *workerv1.StatusRequest) (*workerv1.StatusResponse, error) {
	s := o.spec.Load()
	if s == nil {
		return &workerv1.StatusResponse{State: "idle"}, nil
	}
	state := "ready"
	if o.draining.Load() {
		state = "draining"
	}
	return &workerv1.StatusResponse{
		WorkerId: s.GetWorkerId(), Nonce: s.GetNonce(), ModelId: s.GetModelId(), State: state, Slots: s.GetSlots(), ContextTokens: 100, TokensTotal: o.tokens.Load(),
	}, nil
}

func (o *old) Drain(context.Context, *workerv1.DrainRequest) (*workerv1.DrainResponse, error) {
	o.draining.Store(true)
	o.running.Wait()
	return &workerv1.DrainResponse{}, nil
}

func (o *old) Stop(context.Context, *workerv1.StopRequest) (*workerv1.StopResponse, error) {
	time.AfterFunc(50*time.Millisecond, func() { os.Exit(0) })
	return &workerv1.StopResponse{}, nil
}
