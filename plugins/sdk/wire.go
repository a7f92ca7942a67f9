package sdk

import (
	"context"
	"encoding/json"
	"fmt"

	"google.golang.org/grpc"

	pluginv1 "github.com/rbee-project/rbee/proto/plugin/v1"
)

// Register serves p's part of the plugin protocol on r.
func Register(r grpc.ServiceRegistrar, p Plugin) {
	pluginv1.RegisterPluginServiceServer(r, &pluginServer{plugin: p})
}

type pluginServer struct {
	pluginv1.UnimplementedPluginServiceServer
	plugin Plugin
}

func (s *pluginServer) Info(ctx context.Context, _ *pluginv1.InfoRequest) (*pluginv1.InfoResponse, error) {
	i, err := s.plugin.Info(ctx)
	if err != nil {
		return nil, ToStatus(err)
	}
	var others []*pluginv1.Engine
	for _, e := range i.OtherEngines {
		others = append(others, engineToProto(e))
	}
	return &pluginv1.InfoResponse{
		Name: i.Name, Kind: string(i.Kind), Version: i.Version, Summary: i.Summary, Capabilities: i.Capabilities,
		Engine: engineToProto(i.Engine), OtherEngines: others,
		Formats: i.Formats, Architectures: i.Architectures,
	}, nil
}

func (s *pluginServer) Schema(ctx context.Context, _ *pluginv1.SchemaRequest) (*pluginv1.SchemaResponse, error) {
	schema, err := s.plugin.Schema(ctx)
	if err != nil {
		return nil, ToStatus(err)
	}
	return &pluginv1.SchemaResponse{Schema: schemaToProto(schema)}, nil
}

func (s *pluginServer) Configure(ctx context.Context, req *pluginv1.ConfigureRequest) (*pluginv1.ConfigureResponse, error) {
	config := json.RawMessage(req.GetConfigJson())
	if len(config) == 0 {
		config = json.RawMessage("{}")
	}
	diags, err := s.plugin.Configure(ctx, Config{JSON: config, EngineDir: req.GetEngineDir(), AllowAddresses: req.GetAllowAddresses()})
	if err != nil {
		return nil, ToStatus(err)
	}
	resp := &pluginv1.ConfigureResponse{}
	for _, d := range diags {
		p, err := diagnosticToProto(d)
		if err != nil {
			return nil, ToStatus(err)
		}
		resp.Diagnostics = append(resp.Diagnostics, p)
	}
	return resp, nil
}

// Client is a Plugin in another process. It is safe for concurrent use.
type Client struct {
	rpc pluginv1.PluginServiceClient
}

var _ Plugin = (*Client)(nil)

// MaxReplyBytes is the largest message that a host accepts from a plugin.
const MaxReplyBytes = 8 << 20

// BoundReplies returns conn for a host that does not trust the other end: it rejects a reply larger
// than MaxReplyBytes before allocating memory for it. go-plugin's own connection accepts two
// gigabytes.
func BoundReplies(conn grpc.ClientConnInterface) grpc.ClientConnInterface { return bounded{conn} }

type bounded struct{ grpc.ClientConnInterface }

func (b bounded) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return b.ClientConnInterface.Invoke(ctx, method, args, reply, append(opts, grpc.MaxCallRecvMsgSize(MaxReplyBytes))...)
}

func (b bounded) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return b.ClientConnInterface.NewStream(ctx, desc, method, append(opts, grpc.MaxCallRecvMsgSize(MaxReplyBytes))...)
}

// NewClient returns a client over conn. The caller closes conn.
func NewClient(conn grpc.ClientConnInterface) *Client {
	return &Client{rpc: pluginv1.NewPluginServiceClient(BoundReplies(conn))}
}

// Info returns the plugin's description.
func (c *Client) Info(ctx context.Context) (Info, error) {
	r, err := c.rpc.Info(ctx, &pluginv1.InfoRequest{})
	if err != nil {
		return Info{}, FromStatus(err)
	}
	var others []Engine
	for _, e := range r.GetOtherEngines() {
		others = append(others, engineFromProto(e))
	}
	return Info{
		Name: r.GetName(), Kind: Kind(r.GetKind()), Version: r.GetVersion(), Summary: r.GetSummary(), Capabilities: r.GetCapabilities(),
		Engine: engineFromProto(r.GetEngine()), OtherEngines: others,
		Formats: r.GetFormats(), Architectures: r.GetArchitectures(),
	}, nil
}

// Schema returns the plugin's configuration schema.
func (c *Client) Schema(ctx context.Context) (Schema, error) {
	r, err := c.rpc.Schema(ctx, &pluginv1.SchemaRequest{})
	if err != nil {
		return Schema{}, FromStatus(err)
	}
	return schemaFromProto(r.GetSchema()), nil
}

// Configure passes the configuration to the plugin.
func (c *Client) Configure(ctx context.Context, config Config) (Diagnostics, error) {
	r, err := c.rpc.Configure(ctx, &pluginv1.ConfigureRequest{ConfigJson: config.JSON, EngineDir: config.EngineDir, AllowAddresses: config.AllowAddresses})
	if err != nil {
		return nil, FromStatus(err)
	}
	var diags Diagnostics
	for _, d := range r.GetDiagnostics() {
		diags = append(diags, diagnosticFromProto(d))
	}
	return diags, nil
}

func engineToProto(e Engine) *pluginv1.Engine {
	return &pluginv1.Engine{Name: e.Name, Version: e.Version, Ref: e.Ref, Prefix: e.Prefix, Links: e.Links}
}

func engineFromProto(e *pluginv1.Engine) Engine {
	return Engine{Name: e.GetName(), Version: e.GetVersion(), Ref: e.GetRef(), Prefix: e.GetPrefix(), Links: e.GetLinks()}
}

func schemaToProto(s Schema) *pluginv1.Schema {
	p := &pluginv1.Schema{}
	for _, a := range s.Attributes {
		p.Attributes = append(p.Attributes, &pluginv1.Attribute{
			Name: a.Name, Type: a.Type, Required: a.Required, DefaultJson: a.Default, Sensitive: a.Sensitive, Doc: a.Doc,
		})
	}
	for _, b := range s.Blocks {
		p.Blocks = append(p.Blocks, &pluginv1.Block{
			Name: b.Name, Schema: schemaToProto(b.Schema), Repeated: b.Repeated, Required: b.Required, Doc: b.Doc,
		})
	}
	return p
}

func schemaFromProto(p *pluginv1.Schema) Schema {
	var s Schema
	for _, a := range p.GetAttributes() {
		s.Attributes = append(s.Attributes, Attribute{
			Name: a.GetName(), Type: a.GetType(), Required: a.GetRequired(), Default: json.RawMessage(a.GetDefaultJson()), Sensitive: a.GetSensitive(), Doc: a.GetDoc(),
		})
	}
	for _, b := range p.GetBlocks() {
		s.Blocks = append(s.Blocks, Block{
			Name: b.GetName(), Schema: schemaFromProto(b.GetSchema()), Repeated: b.GetRepeated(), Required: b.GetRequired(), Doc: b.GetDoc(),
		})
	}
	return s
}

func diagnosticToProto(d Diagnostic) (*pluginv1.Diagnostic, error) {
	p := &pluginv1.Diagnostic{Severity: pluginv1.Diagnostic_SEVERITY_ERROR, Summary: d.Summary, Detail: d.Detail}
	if d.Severity == Warning {
		p.Severity = pluginv1.Diagnostic_SEVERITY_WARNING
	}
	for _, step := range d.Path {
		switch v := step.(type) {
		case string:
			p.Path = append(p.Path, &pluginv1.PathStep{Step: &pluginv1.PathStep_Name{Name: v}})
		case int:
			p.Path = append(p.Path, &pluginv1.PathStep{Step: &pluginv1.PathStep_Index{Index: int64(v)}})
		default:
			return nil, fmt.Errorf("diagnostic %q: path step %v is a %T: only string and int are allowed", d.Summary, step, step)
		}
	}
	return p, nil
}

func diagnosticFromProto(p *pluginv1.Diagnostic) Diagnostic {
	d := Diagnostic{Severity: Error, Summary: p.GetSummary(), Detail: p.GetDetail()}
	if p.GetSeverity() == pluginv1.Diagnostic_SEVERITY_WARNING {
		d.Severity = Warning
	}
	for _, step := range p.GetPath() {
		switch v := step.GetStep().(type) {
		case *pluginv1.PathStep_Name:
			d.Path = append(d.Path, v.Name)
		case *pluginv1.PathStep_Index:
			d.Path = append(d.Path, int(v.Index))
		}
	}
	return d
}
