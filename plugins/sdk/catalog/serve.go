package catalog

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/plugins/sdk"
	catalogv1 "github.com/rbee-project/rbee/proto/catalog/v1"
)

// The errors that a host distinguishes; wrap them with %w. They are package sdk's errors under
// names that suit a source.
var (
	ErrInvalid     = sdk.ErrInvalid     // the reference is malformed
	ErrNotFound    = sdk.ErrNotFound    // the reference does not exist
	ErrUnavailable = sdk.ErrUnavailable // the origin cannot be reached, or is overloaded
	// the origin requires credentials, or different ones
	ErrUnauthenticated = sdk.ErrUnauthenticated
	ErrForbidden       = sdk.ErrForbidden   // the origin refuses these credentials
	ErrUnsupported     = sdk.ErrUnsupported // the source cannot do this
	ErrIntegrity       = sdk.ErrIntegrity   // the origin's bytes do not match its description
)

// MaxChunkBytes is the largest piece of a file in one message.
const MaxChunkBytes = 1 << 20

// Serve runs s as the plugin of this process and returns when the process should end. Call it last
// in main, followed only by cleanup. A process that no host started exits with a message.
func Serve(s Source) {
	sdk.Serve(sdk.KindCatalog, s, func(r grpc.ServiceRegistrar, _ *sdk.Process) {
		catalogv1.RegisterCatalogServiceServer(r, &server{source: s})
	}, func(context.Context, time.Duration) error { return nil })
}

// Register serves s on r inside this process, for tests and for hosts that do not need a separate
// process.
func Register(r grpc.ServiceRegistrar, s Source) {
	sdk.Register(r, s)
	catalogv1.RegisterCatalogServiceServer(r, &server{source: s})
}

type server struct {
	catalogv1.UnimplementedCatalogServiceServer
	source Source
}

func (s *server) Search(req *catalogv1.SearchRequest, stream grpc.ServerStreamingServer[catalogv1.SearchResponse]) error {
	q := Query{Text: req.GetText(), Kind: ItemKind(req.GetKind()), Limit: int(max(req.GetLimit(), 0)), Exact: req.GetExact()}
	var mu sync.Mutex // a stream takes one Send at a time
	err := s.source.Search(stream.Context(), q, func(i Item) error {
		mu.Lock()
		defer mu.Unlock()
		return stream.Send(&catalogv1.SearchResponse{
			Ref: i.Ref, Kind: string(i.Kind), Name: i.Name, Summary: i.Summary, SizeBytes: i.SizeBytes, License: i.License,
		})
	})
	return sdk.ToStatus(err)
}

func (s *server) Resolve(ctx context.Context, req *catalogv1.ResolveRequest) (*catalogv1.ResolveResponse, error) {
	m, err := s.source.Resolve(ctx, req.GetRef())
	if err != nil {
		return nil, sdk.ToStatus(err)
	}
	resp := &catalogv1.ResolveResponse{Ref: m.Ref, Name: m.Name, Kind: string(m.Kind), Version: m.Version, License: m.License, Notes: m.Notes}
	for _, f := range m.Files {
		resp.Files = append(resp.Files, fileToProto(f))
	}
	return resp, nil
}

func (s *server) Fetch(req *catalogv1.FetchRequest, stream grpc.ServerStreamingServer[catalogv1.FetchResponse]) error {
	if req.GetOffset() < 0 {
		return sdk.ToStatus(fmt.Errorf("fetch: offset %d is negative: %w", req.GetOffset(), ErrInvalid))
	}
	// Sources write in the small pieces of io.Copy; fewer, larger messages cost the host less.
	w := bufio.NewWriterSize(&chunks{stream: stream}, MaxChunkBytes/4)
	err := s.source.Fetch(stream.Context(), fileFromProto(req.GetFile()), req.GetOffset(), w)
	// Send what was read before an error, too: the host resumes after it.
	if flushErr := w.Flush(); err == nil {
		err = flushErr
	}
	return sdk.ToStatus(err)
}

// chunks writes into a stream. Send fails after the stream's context has ended.
type chunks struct {
	stream grpc.ServerStreamingServer[catalogv1.FetchResponse]
}

func (c *chunks) Write(b []byte) (int, error) {
	n := 0
	for len(b) > 0 {
		if err := c.stream.Context().Err(); err != nil {
			return n, err
		}
		piece := b[:min(len(b), MaxChunkBytes)]
		if err := c.stream.Send(&catalogv1.FetchResponse{Data: piece}); err != nil {
			return n, err
		}
		n += len(piece)
		b = b[len(piece):]
	}
	return n, nil
}

// Client is a source in another process. It is safe for concurrent use. Its errors match the values
// of this package with errors.Is.
type Client struct {
	*sdk.Client
	rpc catalogv1.CatalogServiceClient
}

var _ Source = (*Client)(nil)

// NewClient returns a client over conn. The caller closes conn.
func NewClient(conn grpc.ClientConnInterface) *Client {
	return &Client{Client: sdk.NewClient(conn), rpc: catalogv1.NewCatalogServiceClient(sdk.BoundReplies(conn))}
}

// Search calls emit with every item, best first. It stops at an error of emit and returns it.
func (c *Client) Search(ctx context.Context, q Query, emit func(Item) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.rpc.Search(ctx, &catalogv1.SearchRequest{Text: q.Text, Kind: string(q.Kind), Limit: int32(q.Limit), Exact: q.Exact})
	if err != nil {
		return sdk.FromStatus(err)
	}
	return sdk.Receive(stream, func(r *catalogv1.SearchResponse) error {
		return emit(Item{
			Ref: r.GetRef(), Kind: ItemKind(r.GetKind()), Name: r.GetName(), Summary: r.GetSummary(), SizeBytes: r.GetSizeBytes(), License: r.GetLicense(),
		})
	})
}

// Resolve returns the files of ref.
func (c *Client) Resolve(ctx context.Context, ref string) (Manifest, error) {
	r, err := c.rpc.Resolve(ctx, &catalogv1.ResolveRequest{Ref: ref})
	if err != nil {
		return Manifest{}, sdk.FromStatus(err)
	}
	m := Manifest{Ref: r.GetRef(), Name: r.GetName(), Kind: ItemKind(r.GetKind()), Version: r.GetVersion(), License: r.GetLicense(), Notes: r.GetNotes()}
	for _, f := range r.GetFiles() {
		m.Files = append(m.Files, fileFromProto(f))
	}
	return m, nil
}

// Fetch writes the file's bytes from offset to its end into w. Bytes written before an error are
// part of the file. It stops at an error of w and returns it.
func (c *Client) Fetch(ctx context.Context, f File, offset int64, w io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.rpc.Fetch(ctx, &catalogv1.FetchRequest{File: fileToProto(f), Offset: offset})
	if err != nil {
		return sdk.FromStatus(err)
	}
	return sdk.Receive(stream, func(r *catalogv1.FetchResponse) error {
		_, err := w.Write(r.GetData())
		return err
	})
}

func fileToProto(f File) *catalogv1.File {
	return &catalogv1.File{Ref: f.Ref, Path: f.Path, SizeBytes: f.SizeBytes, Digest: f.Digest, Locator: f.Locator, Url: f.URL, Header: f.Header}
}

func fileFromProto(p *catalogv1.File) File {
	return File{Ref: p.GetRef(), Path: p.GetPath(), SizeBytes: p.GetSizeBytes(), Digest: p.GetDigest(), Locator: p.GetLocator(), URL: p.GetUrl(), Header: p.GetHeader()}
}
