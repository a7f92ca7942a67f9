package pluginhost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/hashicorp/hcl/v2"
	"google.golang.org/grpc/connectivity"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// configure asks a freshly launched plugin for its identity, decodes its config block by its own
// schema, and configures it. Diagnostics are about the block; an error is the plugin's.
func (h *Host) configure(ctx context.Context, p *process, plugin sdk.Plugin, s Spec, engineDir string) (info sdk.Info, schema sdk.Schema, diags hcl.Diagnostics, err error) {
	if info, schema, err = h.introduce(ctx, p, plugin, s); err != nil {
		return sdk.Info{}, sdk.Schema{}, nil, err
	}
	config, diags, err := decodeConfig(s.plugin, schema)
	if err != nil {
		return info, schema, nil, core.Errorf(core.Internal, "launch plugin: %s sent a broken schema: %w", p.name, err).Hint("Report this to the author of the plugin.")
	}
	if diags.HasErrors() {
		return info, schema, diags, nil
	}
	var said sdk.Diagnostics
	err = h.call(ctx, p, "Configure", func(ctx context.Context) (err error) {
		said, err = plugin.Configure(ctx, sdk.Config{JSON: config, EngineDir: engineDir, AllowAddresses: h.o.AllowAddresses})
		return err
	})
	if err != nil {
		return info, schema, diags, err
	}
	return info, schema, append(diags, pluginDiagnostics(s.plugin, schema, p.name, said)...), nil
}

// introduce asks a plugin for its description and its schema.
func (h *Host) introduce(ctx context.Context, p *process, plugin sdk.Plugin, s Spec) (info sdk.Info, schema sdk.Schema, err error) {
	err = h.call(ctx, p, "Info", func(ctx context.Context) (err error) {
		info, err = plugin.Info(ctx)
		return err
	})
	if err != nil {
		return info, schema, err
	}
	if info.Kind != s.Kind {
		return info, schema, core.Errorf(core.Invalid, "launch plugin: %s says that it is a %s plugin, but it stands under the name %s", p.name, info.Kind, filepath.Base(s.Executable)).Hint(
			"Rename the file to rbee-%s-%s.", info.Kind, info.Name)
	}
	err = h.call(ctx, p, "Schema", func(ctx context.Context) (err error) {
		schema, err = plugin.Schema(ctx)
		return err
	})
	return info, schema, err
}

// call bounds one of the short calls of a launch.
func (h *Host) call(ctx context.Context, p *process, name string, fn func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, h.o.CallTimeout)
	defer cancel()
	err := fn(bounded)
	// The deadline travels with the call, so the plugin's side may see it a moment before this one.
	if ctx.Err() == nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)) {
		return core.Errorf(core.Unavailable, "launch plugin: %s does not answer %s within %s", p.name, name, h.o.CallTimeout).Hint("It hangs, and was ended. See what it logs, and report it to the author of the plugin.")
	}
	return p.explain(opLaunch, err)
}

// configError returns diagnostics as an error, with their source lines.
func configError(s Spec, diags hcl.Diagnostics) error {
	return core.WithHint(s.plugin.Diagnostics(diags).Err(), "\"rbee plugin schema %s/%s\" explains what may stand in the block.", s.Kind, s.Name)
}

// warn logs the warnings among diagnostics.
func (h *Host) warn(s Spec, diags hcl.Diagnostics) {
	for _, d := range diags {
		at := ""
		if d.Subject != nil {
			at = d.Subject.String()
		}
		h.o.Logger.Warn("plugin configuration", "plugin", s.Name, "summary", d.Summary, "detail", d.Detail, "at", at)
	}
}

// Describe launches the plugin briefly and returns its description and schema. Errors as
// LaunchWorker, except those of the configuration.
func (h *Host) Describe(ctx context.Context, s Spec) (sdk.Info, sdk.Schema, error) {
	p, err := h.start(ctx, launch{spec: s, tethered: true})
	if err != nil {
		return sdk.Info{}, sdk.Schema{}, err
	}
	defer p.end()
	return h.introduce(ctx, p, sdk.NewClient(p.conn), s)
}

// end kills the process and waits until it has exited.
func (p *process) end() {
	_ = p.conn.Close() // fails only if it is already closed
	_ = p.run.kill()   // if it cannot be killed, it is not ours
	<-p.run.done
}

// explain classifies the error of a call. If the process exited, that explains it better than the
// broken connection does.
func (p *process) explain(op string, err error) error {
	if err == nil {
		return nil
	}
	// When the process exits its connection is closed, which reads as cancelled, maybe before the
	// exit has been noticed.
	closed := errors.Is(err, context.Canceled) && p.conn.GetState() == connectivity.Shutdown
	if (closed || errors.Is(err, sdk.ErrUnavailable)) && p.goneSoon() || errors.Is(err, context.Canceled) && p.run.gone() {
		msg := p.name + " ended"
		if exit := p.run.exitSaid(); exit != "" {
			msg += fmt.Sprintf(" (%s)", exit)
		}
		return core.Wrap(errors.New(msg), core.WorkerLost, op)
	}
	return coreError(op, fmt.Errorf("%s: %w", p.name, err))
}

// jsonNull reports whether raw stands for no value.
func jsonNull(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }
