package sdk_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/rbee-project/rbee/plugins/sdk"
)

func TestErrorsRoundTrip(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		err  error
		code codes.Code
	}{
		"invalid":         {sdk.ErrInvalid, codes.InvalidArgument},
		"not found":       {sdk.ErrNotFound, codes.NotFound},
		"state":           {sdk.ErrState, codes.FailedPrecondition},
		"unavailable":     {sdk.ErrUnavailable, codes.Unavailable},
		"too large":       {sdk.ErrTooLarge, codes.ResourceExhausted},
		"integrity":       {sdk.ErrIntegrity, codes.DataLoss},
		"unsupported":     {sdk.ErrUnsupported, codes.Unimplemented},
		"unauthenticated": {sdk.ErrUnauthenticated, codes.Unauthenticated},
		"forbidden":       {sdk.ErrForbidden, codes.PermissionDenied},
		"cancelled":       {context.Canceled, codes.Canceled},
		"deadline":        {context.DeadlineExceeded, codes.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := sdk.WithHint(fmt.Errorf("thing 9: %w", tc.err), "Do %s.", "that")
			sent := sdk.ToStatus(fmt.Errorf("around: %w", err))
			must.Eq(t, tc.code, status.Code(sent))
			got := sdk.FromStatus(sent)
			must.ErrorIs(t, got, tc.err)
			must.Eq(t, "around: thing 9: "+tc.err.Error(), got.Error())
			must.Eq(t, "Do that.", sdk.HintOf(got))
			// Convert it once more, as in a plugin that passes on another plugin's error.
			again := sdk.FromStatus(sdk.ToStatus(fmt.Errorf("through: %w", got)))
			must.ErrorIs(t, again, tc.err)
			must.Eq(t, "Do that.", sdk.HintOf(again))
		})
	}
	must.Nil(t, sdk.ToStatus(nil))
	must.Nil(t, sdk.FromStatus(nil))
	must.Nil(t, sdk.WithHint(nil, "x"))
	plain := sdk.FromStatus(sdk.ToStatus(errors.New("broken")))
	must.Eq(t, codes.Internal, status.Code(plain))
	must.Eq(t, "broken", plain.Error())
	must.Eq(t, "", sdk.HintOf(plain))
	own := status.Error(codes.Aborted, "mine")
	must.Eq(t, codes.Aborted, status.Code(sdk.ToStatus(own)))
}

type plugin struct {
	info   sdk.Info
	schema sdk.Schema
	diags  sdk.Diagnostics
	given  sdk.Config
}

func (p *plugin) Info(context.Context) (sdk.Info, error)     { return p.info, nil }
func (p *plugin) Schema(context.Context) (sdk.Schema, error) { return p.schema, nil }

func (p *plugin) Configure(_ context.Context, c sdk.Config) (sdk.Diagnostics, error) {
	p.given = c
	return p.diags, nil
}

func dial(t *testing.T, p sdk.Plugin) *sdk.Client {
	t.Helper()
	l := bufconn.Listen(1 << 16)
	s := grpc.NewServer()
	sdk.Register(s, p)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	conn, err := grpc.NewClient("passthrough:x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	must.NoError(t, err)
	t.Cleanup(func() {
		_ = conn.Close()
		s.Stop()
		<-done
	})
	return sdk.NewClient(conn)
}

func TestWireRoundTrip(t *testing.T) {
	t.Parallel()
	p := &plugin{
		info: sdk.Info{
			Name: "n", Kind: sdk.KindWorker, Version: "1", Summary: "s", Capabilities: []string{"a", "b"},
			Engine:       sdk.Engine{Name: "e", Version: "v1", Ref: "npm:x@1", Prefix: "p/", Links: map[string]string{"l": "f"}},
			OtherEngines: []sdk.Engine{{Name: "e", Version: "v0", Ref: "npm:x@0", Prefix: "p/", Links: map[string]string{"l": "g"}}},
			Formats:      []string{"gguf"}, Architectures: []string{"llama"},
		},
		schema: sdk.Schema{
			Attributes: []sdk.Attribute{{Name: "a", Type: "string", Required: true, Default: json.RawMessage(`"x"`), Sensitive: true, Doc: "d"}},
			Blocks: []sdk.Block{{
				Name: "b", Repeated: true, Required: true, Doc: "d", Schema: sdk.Schema{Attributes: []sdk.Attribute{{Name: "c", Type: "number"}}},
			}},
		},
		diags: sdk.Diagnostics{{Summary: "s", Detail: "d", Path: []any{"b", 1, "c"}}, {Severity: sdk.Warning, Summary: "w"}},
	}
	c := dial(t, p)
	info, err := c.Info(t.Context())
	must.NoError(t, err)
	must.Eq(t, p.info, info)
	schema, err := c.Schema(t.Context())
	must.NoError(t, err)
	must.Eq(t, p.schema, schema)
	given := sdk.Config{JSON: json.RawMessage(`{"a":1}`), EngineDir: "/e", AllowAddresses: []string{"10.0.0.0/8"}}
	diags, err := c.Configure(t.Context(), given)
	must.NoError(t, err)
	must.Eq(t, p.diags, diags)
	must.Eq(t, given, p.given)
	_, err = c.Configure(t.Context(), sdk.Config{})
	must.NoError(t, err)
	must.Eq(t, "{}", string(p.given.JSON)) // never empty

	p.diags = sdk.Diagnostics{{Summary: "s", Path: []any{1.5}}}
	_, err = c.Configure(t.Context(), given)
	must.StrContains(t, err.Error(), "only string and int are allowed")
}

func TestSeverityZeroValue(t *testing.T) {
	t.Parallel()
	must.True(t, sdk.Diagnostics{{}}.HasErrors())
	must.False(t, sdk.Diagnostics{{Severity: sdk.Warning}}.HasErrors())
}
