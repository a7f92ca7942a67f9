package config

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// ValidPluginName reports whether name may follow rbee-<kind>- in a plugin's file name and serve as
// a block's label.
func ValidPluginName(name string) bool {
	return regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`).MatchString(name)
}

// EvalContext returns what expressions of the plugin's config block may use; see
// Config.EvalContext. A Plugin that Load did not make has no variables.
func (p Plugin) EvalContext(traversals []hcl.Traversal) (*hcl.EvalContext, hcl.Diagnostics) {
	if p.owner == nil {
		return (&Config{}).EvalContext(traversals)
	}
	return p.owner.EvalContext(traversals)
}

// Diagnostics wraps diagnostics about the plugin's block, so that they print with their source
// lines.
func (p Plugin) Diagnostics(list hcl.Diagnostics) *Diagnostics {
	if p.owner == nil {
		return &Diagnostics{List: list}
	}
	return p.owner.Diagnostics(list)
}

const nameRule = "use up to 64 lower-case letters, digits, dashes and underscores, and begin with a letter or a digit"

// plugin reads a worker or catalog block.
func (l *loader) plugin(b *hcl.Block) {
	label := b.Labels[0]
	if !ValidPluginName(label) {
		l.add(errorf(&b.LabelRanges[0], "Unsuitable name", "%q cannot name a %s: %s.", label, b.Type, nameRule))
		return
	}
	if !l.once(b.Type+" "+label, b) {
		return
	}
	content, diags := b.Body.Content(&hcl.BodySchema{
		Attributes: []hcl.AttributeSchema{{Name: "plugin"}, {Name: "env"}, {Name: "read"}, {Name: "write"}, {Name: "sha256"}},
		Blocks:     []hcl.BlockHeaderSchema{{Type: "config"}},
	})
	l.add(diags)
	p := Plugin{Kind: b.Type, Label: label, Executable: fmt.Sprintf("rbee-%s-%s", b.Type, label), Body: hcl.EmptyBody(), Range: b.DefRange}
	if a := content.Attributes["plugin"]; a != nil {
		l.executable(&p, a)
	}
	if a := content.Attributes["sha256"]; a != nil {
		if text, ok := l.eval(a, cty.String, "a string"); ok {
			p.SHA256 = strings.ToLower(text)
			if !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(p.SHA256) {
				l.add(errorf(a.Expr.Range().Ptr(), "Unsuitable value", "sha256 must be the 64 hexadecimal digits that \"sha256sum %s\" prints.", p.Executable))
			}
		}
	}
	if a := content.Attributes["env"]; a != nil {
		p.Env = l.envNames(a)
	}
	p.Read, p.Write = l.paths(content.Attributes["read"]), l.paths(content.Attributes["write"])
	for i, cfg := range content.Blocks {
		if i > 0 {
			l.add(errorf(&cfg.DefRange, "Block given twice", "The block config stands at %s already. Merge the two into one.", content.Blocks[0].DefRange))
			continue
		}
		p.Body = cfg.Body
	}
	if b.Type == "worker" {
		l.c.Workers = append(l.c.Workers, p)
	} else {
		l.c.Catalogs = append(l.c.Catalogs, p)
	}
}

func (l *loader) executable(p *Plugin, a *hcl.Attribute) {
	text, ok := l.eval(a, cty.String, "a string")
	if !ok {
		return
	}
	name, fits := strings.CutPrefix(text, "rbee-"+p.Kind+"-")
	if !fits || !ValidPluginName(name) {
		l.add(errorf(a.Expr.Range().Ptr(), "Unsuitable value", "plugin must be the file name of an executable in the plugin folder, rbee-%s-NAME: %s.", p.Kind, nameRule))
		return
	}
	p.Executable = text
}

func (l *loader) envNames(a *hcl.Attribute) []string {
	v, ok := l.value(a)
	if !ok {
		return nil
	}
	list, err := convert.Convert(v, cty.List(cty.String))
	if err != nil || list.IsNull() {
		l.add(errorf(a.Expr.Range().Ptr(), "Unsuitable value", "env must be a list of names of environment variables, such as [\"HF_TOKEN\"]."))
		return nil
	}
	var names []string
	for _, e := range list.AsValueSlice() {
		if e.IsNull() || !regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`).MatchString(e.AsString()) {
			l.add(errorf(a.Expr.Range().Ptr(), "Unsuitable value", "env must be a list of names of environment variables, without their values, such as [\"HF_TOKEN\"]."))
			return nil
		}
		// The host itself sets these variables for the plugin.
		if name := e.AsString(); strings.HasPrefix(name, "PLUGIN_") || strings.HasPrefix(name, "RBEE_PLUGIN") {
			l.add(errorf(a.Expr.Range().Ptr(), "Unsuitable value", "env must not name %s: rbee sets it itself.", name))
			return nil
		}
		names = append(names, e.AsString())
	}
	return names
}

// paths reads a list of paths that are absolute or begin with "~/". a may be nil.
func (l *loader) paths(a *hcl.Attribute) []string {
	if a == nil {
		return nil
	}
	v, ok := l.value(a)
	if !ok {
		return nil
	}
	list, err := convert.Convert(v, cty.List(cty.String))
	if err != nil || list.IsNull() {
		l.add(errorf(a.Expr.Range().Ptr(), "Unsuitable value", "%s must be a list of paths, such as [\"~/models\"].", a.Name))
		return nil
	}
	var out []string
	for _, e := range list.AsValueSlice() {
		path := ""
		if !e.IsNull() {
			path = e.AsString()
		}
		if rest, ok := strings.CutPrefix(path, "~/"); ok {
			if home, _ := l.c.env("HOME"); home != "" {
				path = filepath.Join(home, rest)
			}
		}
		if !filepath.IsAbs(path) {
			l.add(errorf(a.Expr.Range().Ptr(), "Unsuitable value", "%s must be a list of whole paths, which begin with / or ~/: %q is relative to nothing.", a.Name, path))
			return nil
		}
		out = append(out, filepath.Clean(path))
	}
	return out
}
