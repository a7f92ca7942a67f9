package catalog_test

import (
	"context"
	"io"
	"math"
	"net"
	"testing"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// source returns scripted answers.
type source struct {
	manifest catalog.Manifest
	items    []catalog.Item
	fetched  catalog.File
	query    catalog.Query
}

func (s *source) Info(context.Context) (sdk.Info, error)     { return sdk.Info{}, nil }
func (s *source) Schema(context.Context) (sdk.Schema, error) { return sdk.Schema{}, nil }
func (s *source) Configure(context.Context, sdk.Config) (sdk.Diagnostics, error) {
	return nil, nil
}

func (s *source) Search(_ context.Context, q catalog.Query, emit func(catalog.Item) error) error {
	s.query = q
	for _, i := range s.items {
		if err := emit(i); err != nil {
			return err
		}
	}
	return nil
}

func (s *source) Resolve(context.Context, string) (catalog.Manifest, error) { return s.manifest, nil }

func (s *source) Fetch(_ context.Context, f catalog.File, _ int64, w io.Writer) error {
	s.fetched = f
	_, err := io.WriteString(w, "bytes")
	return err
}

func dial(t *testing.T, s catalog.Source) *catalog.Client {
	t.Helper()
	l := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	catalog.Register(server, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	conn, err := grpc.NewClient("passthrough:x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	must.NoError(t, err)
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		<-done
	})
	return catalog.NewClient(conn)
}

func TestWireRoundTrip(t *testing.T) {
	t.Parallel()
	f := catalog.File{
		Ref: "r", Path: "p", SizeBytes: 5, Digest: "sha256:00", Locator: "l",
		URL: "https://origin.example/p", Header: map[string]string{"Authorization": "Bearer secret"},
	}
	s := &source{
		manifest: catalog.Manifest{Ref: "r", Name: "n", Kind: catalog.KindModel, Version: "1", License: "MIT", Files: []catalog.File{f}, Notes: []string{"first", "second"}},
		items:    []catalog.Item{{Ref: "r", Kind: catalog.KindEngine, Name: "n", Summary: "s", SizeBytes: 7, License: "MIT"}},
	}
	c := dial(t, s)
	m, err := c.Resolve(t.Context(), "r")
	must.NoError(t, err)
	must.Eq(t, s.manifest, m)
	must.NoError(t, c.Fetch(t.Context(), f, 0, io.Discard))
	must.Eq(t, f, s.fetched)
	var items []catalog.Item
	q := catalog.Query{Text: "t", Kind: catalog.KindModel, Limit: 3, Exact: true}
	must.NoError(t, c.Search(t.Context(), q, func(i catalog.Item) error {
		items = append(items, i)
		return nil
	}))
	must.Eq(t, s.items, items)
	must.Eq(t, q, s.query)
}

// raw is a message that is sent unencoded.
type raw []byte

type rawCodec struct{}

func (rawCodec) Name() string                  { return "proto" }
func (rawCodec) Marshal(v any) ([]byte, error) { return v.(raw), nil }
func (rawCodec) Unmarshal([]byte, any) error   { return nil }

func TestGarbage(t *testing.T) {
	t.Parallel()
	for name, garbage := range map[string]raw{
		"no protobuf": {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"cut":         {0x0a, 0x7f, 'x'},
		"too large":   make(raw, sdk.MaxReplyBytes+1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := bufconn.Listen(1 << 16)
			server := grpc.NewServer(grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
				var in raw
				if err := s.RecvMsg(&in); err != nil {
					return err
				}
				return s.SendMsg(garbage)
			}))
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = server.Serve(l)
			}()
			conn, err := grpc.NewClient("passthrough:x", grpc.WithTransportCredentials(insecure.NewCredentials()),
				// Same limit as go-plugin.
				grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
			must.NoError(t, err)
			t.Cleanup(func() {
				_ = conn.Close()
				server.Stop()
				<-done
			})
			c := catalog.NewClient(conn)
			_, err = c.Resolve(t.Context(), "x")
			must.Error(t, err)
			must.Error(t, c.Search(t.Context(), catalog.Query{}, func(catalog.Item) error { return nil }))
			must.Error(t, c.Fetch(t.Context(), catalog.File{}, 0, io.Discard))
			_, err = c.Info(t.Context())
			must.Error(t, err)
		})
	}
}
