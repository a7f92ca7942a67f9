package pluginhost

import (
	"context"
	"fmt"

	"github.com/hashicorp/hcl/v2"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// Validate checks every plugin block of c: the executable exists and is a plugin, and the config
// block fits the plugin's schema and the plugin itself. It launches each plugin briefly, one after
// the other, and starts no worker. Print the result with c.Diagnostics.
func (h *Host) Validate(ctx context.Context, c *config.Config) hcl.Diagnostics {
	var out hcl.Diagnostics
	for _, list := range [][]config.Plugin{c.Workers, c.Catalogs} {
		for _, p := range list {
			diags, err := h.validate(ctx, p)
			if err != nil {
				detail := err.Error()
				if hint := core.HintOf(err); hint != "" {
					detail += ". " + hint
				}
				d := &hcl.Diagnostic{Severity: hcl.DiagError, Summary: fmt.Sprintf("Plugin of %s %q cannot be used", p.Kind, p.Label), Detail: detail}
				if p.Range.Filename != "" {
					d.Subject = p.Range.Ptr()
				}
				diags = append(diags, d)
			}
			out = append(out, diags...)
			if ctx.Err() != nil {
				return out
			}
		}
	}
	return out
}

func (h *Host) validate(ctx context.Context, block config.Plugin) (hcl.Diagnostics, error) {
	s, err := h.Spec(block)
	if err != nil {
		return nil, err
	}
	p, err := h.start(ctx, launch{spec: s, tethered: true})
	if err != nil {
		return nil, err
	}
	defer p.end()
	_, _, diags, err := h.configure(ctx, p, sdk.NewClient(p.conn), s, "")
	return diags, err
}
