package pluginhost

import (
	"context"
	"io"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// Catalog is a running catalog plugin process. Its errors are core's: NotFound, Unavailable,
// Unauthenticated, Forbidden, WorkerLost when the process exited. It is safe for concurrent use.
type Catalog struct {
	p      *process
	client *catalog.Client
	info   sdk.Info
}

var _ catalog.Source = (*Catalog)(nil)

// LaunchCatalog starts and configures a catalog plugin, which ends with this process. ctx bounds
// the launch only. The caller must Close it. Errors as LaunchWorker.
func (h *Host) LaunchCatalog(ctx context.Context, s Spec) (*Catalog, error) {
	if s.Kind != sdk.KindCatalog {
		return nil, core.Errorf(core.Invalid, "launch plugin: %q is a %s plugin, not a catalog source", s.Name, s.Kind)
	}
	p, err := h.start(ctx, launch{spec: s, tethered: true})
	if err != nil {
		return nil, err
	}
	client := catalog.NewClient(p.conn)
	info, _, diags, err := h.configure(ctx, p, client, s, "")
	if err == nil && diags.HasErrors() {
		err = configError(s, diags)
	}
	if err != nil {
		p.end()
		return nil, err
	}
	h.warn(s, diags)
	return &Catalog{p: p, client: client, info: info}, nil
}

// Info returns the plugin's description from the launch.
func (c *Catalog) Info(context.Context) (sdk.Info, error) { return c.info, nil }

// Schema returns the schema of the plugin's config block.
func (c *Catalog) Schema(ctx context.Context) (sdk.Schema, error) {
	s, err := c.client.Schema(ctx)
	return s, c.p.explain("catalog schema", err)
}

// Configure always fails: LaunchCatalog has configured the plugin.
func (c *Catalog) Configure(context.Context, sdk.Config) (sdk.Diagnostics, error) {
	return nil, core.Errorf(core.Conflict, "configure plugin: %s is configured already", c.p.name)
}

// Search emits what the source offers. An error of emit ends it and is returned unchanged.
func (c *Catalog) Search(ctx context.Context, q catalog.Query, emit func(catalog.Item) error) error {
	var ours error
	err := c.client.Search(ctx, q, func(i catalog.Item) error {
		ours = emit(i)
		return ours
	})
	if ours != nil {
		return ours
	}
	return c.p.explain("search catalog", err)
}

// Resolve asks which files ref stands for.
func (c *Catalog) Resolve(ctx context.Context, ref string) (catalog.Manifest, error) {
	m, err := c.client.Resolve(ctx, ref)
	return m, c.p.explain("resolve reference", err)
}

// Fetch writes the file's bytes from offset to its end into w. An error of w ends it and is
// returned unchanged.
func (c *Catalog) Fetch(ctx context.Context, f catalog.File, offset int64, w io.Writer) error {
	kept := &keepError{w: w}
	err := c.client.Fetch(ctx, f, offset, kept)
	if kept.err != nil {
		return kept.err
	}
	return c.p.explain("fetch file", err)
}

// keepError records the writer's own error, to tell it from the plugin's.
type keepError struct {
	w   io.Writer
	err error
}

func (k *keepError) Write(b []byte) (int, error) {
	n, err := k.w.Write(b)
	k.err = err
	return n, err
}

// Ping checks that the plugin responds.
func (c *Catalog) Ping(ctx context.Context) error {
	_, err := c.client.Info(ctx)
	return c.p.explain("ping catalog", err)
}

// Kill kills the process at once; if it has already exited, that is not an error. It does not wait:
// use Done.
func (c *Catalog) Kill() error { return c.p.run.kill() }

// PID returns the process id.
func (c *Catalog) PID() int { return c.p.run.id.PID }

// Done is closed when the process has exited and been reaped.
func (c *Catalog) Done() <-chan struct{} { return c.p.run.done }

// Close ends the process and waits for it. It is idempotent.
func (c *Catalog) Close() error {
	c.p.letGo() // closes its standard input, which tells it to exit
	select {
	case <-c.p.run.done:
		return nil
	case <-time.After(2 * time.Second):
	}
	if err := c.p.run.kill(); err != nil {
		return err
	}
	<-c.p.run.done
	return nil
}
