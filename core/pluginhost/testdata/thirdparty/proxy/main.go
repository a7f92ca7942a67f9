// Command rbee-worker-proxy is a worker type in sixty lines: it forwards requests to a running
// OpenAI-compatible server.
package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

type proxy struct {
	target *url.URL
	gate   *worker.Gate
}

func main() { worker.Serve(&proxy{}) }

func (p *proxy) Info(context.Context) (sdk.Info, error) {
	return sdk.Info{Name: "proxy", Kind: sdk.KindWorker, Version: "0.1.0", Summary: "Passes requests on."}, nil
}

func (p *proxy) Schema(context.Context) (sdk.Schema, error) {
	return sdk.Schema{Attributes: []sdk.Attribute{{Name: "url", Type: "string", Required: true, Doc: "Where the server is."}}}, nil
}

func (p *proxy) Configure(_ context.Context, c sdk.Config) (sdk.Diagnostics, error) {
	var config struct{ URL string }
	if err := json.Unmarshal(c.JSON, &config); err != nil {
		return nil, err
	}
	var err error
	if p.target, err = url.Parse(config.URL); err != nil || p.target.Host == "" {
		return sdk.Diagnostics{{Summary: "No URL", Detail: "Write http://HOST:PORT.", Path: []any{"url"}}}, nil
	}
	return nil, nil
}

func (p *proxy) Fingerprint(ctx context.Context, emit func(worker.Fingerprint) error) error {
	if err := emit(worker.Fingerprint{Devices: []worker.Device{{ID: "remote", Kind: "remote", Name: p.target.Host}}}); err != nil {
		return err
	}
	<-ctx.Done() // nothing ever changes
	return ctx.Err()
}

func (p *proxy) Start(_ context.Context, s worker.StartSpec, _ func(worker.Progress) error) (http.Handler, error) {
	p.gate = worker.NewGate(s.Slots)
	return p.gate.Handler(httputil.NewSingleHostReverseProxy(p.target)), nil
}

func (p *proxy) Status(context.Context) (worker.Status, error) {
	st := worker.Status{State: worker.StateReady}
	p.gate.Fill(&st)
	return st, nil
}

func (p *proxy) Drain(ctx context.Context) error                     { return p.gate.Drain(ctx) }
func (p *proxy) Stop(ctx context.Context, grace time.Duration) error { return p.gate.Stop(ctx, grace) }
