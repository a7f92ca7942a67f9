// Command oldcatalog is a catalog source built from the first publication of plugin protocol 1. It
// has one model, "old".
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	catalogv1 "github.com/rbee-project/rbee/core/pluginhost/testdata/protocol1/catalog/v1"
	pluginv1 "github.com/rbee-project/rbee/core/pluginhost/testdata/protocol1/plugin/v1"
)

const content = "GGUF of old"

func main() {
	if os.Getenv("RBEE_PLUGIN_TETHER") == "1" {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
	}
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  goplugin.HandshakeConfig{MagicCookieKey: "RBEE_PLUGIN", MagicCookieValue: "4f1c2a7e-rbee-plugin"},
		VersionedPlugins: map[int]goplugin.PluginSet{1: {"catalog": &old{}}},
		GRPCServer:       goplugin.DefaultGRPCServer,
	})
}

type old struct {
	goplugin.NetRPCUnsupportedPlugin
	pluginv1.UnimplementedPluginServiceServer
	catalogv1.UnimplementedCatalogServiceServer
}

func (o *old) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	pluginv1.RegisterPluginServiceServer(s, o)
	catalogv1.RegisterCatalogServiceServer(s, o)
	return nil
}

func (*old) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("this side serves")
}

func (*old) Info(context.Context, *pluginv1.InfoRequest) (*pluginv1.InfoResponse, error) {
	return &pluginv1.InfoResponse{Name: "old", Kind: "catalog", Version: "1.0.0", Summary: "Has one model."}, nil
}

func (*old) Schema(context.Context, *pluginv1.SchemaRequest) (*pluginv1.SchemaResponse, error) {
	return &pluginv1.SchemaResponse{Schema: &pluginv1.Schema{}}, nil
}

func (*old) Configure(context.Context, *pluginv1.ConfigureRequest) (*pluginv1.ConfigureResponse, error) {
	return &pluginv1.ConfigureResponse{}, nil
}

func (*old) Search(_ *catalogv1.SearchRequest, stream grpc.ServerStreamingServer[catalogv1.SearchResponse]) error {
	return stream.Send(&catalogv1.SearchResponse{Ref: "old", Kind: "model", Name: "old", Summary: "A model.", SizeBytes: int64(len(content))})
}

func (*old) Resolve(_ context.Context, r *catalogv1.ResolveRequest) (*catalogv1.ResolveResponse, error) {
	if r.GetRef() != "old" {
		return nil, status.Errorf(codes.NotFound, "there is no %q", r.GetRef())
	}
	sum := sha256.Sum256([]byte(content))
	return &catalogv1.ResolveResponse{Ref: "old", Name: "old", Kind: "model", Files: []*catalogv1.File{
		{Ref: "old", Path: "old.gguf", SizeBytes: int64(len(content)), Digest: "sha256:" + hex.EncodeToString(sum[:]), Locator: "old"},
	}}, nil
}

func (*old) Fetch(r *catalogv1.FetchRequest, stream grpc.ServerStreamingServer[catalogv1.FetchResponse]) error {
	if r.GetOffset() < 0 || r.GetOffset() > int64(len(content)) {
		return status.Error(codes.InvalidArgument, "offset")
	}
	return stream.Send(&catalogv1.FetchResponse{Data: []byte(content[r.GetOffset():])})
}
