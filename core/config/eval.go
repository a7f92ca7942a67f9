package config

import (
	"fmt"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// EvalContext returns the context for the configuration's expressions: env.NAME for the variables
// that traversals name, and a few functions. A variable that is not set is an error at the place
// that names it.
func (c *Config) EvalContext(traversals []hcl.Traversal) (*hcl.EvalContext, hcl.Diagnostics) {
	var diags hcl.Diagnostics
	vars := map[string]cty.Value{}
	for _, t := range traversals {
		if t.RootName() != "env" || len(t) < 2 {
			continue
		}
		var name string
		switch step := t[1].(type) {
		case hcl.TraverseAttr:
			name = step.Name
		case hcl.TraverseIndex:
			if step.Key.Type() == cty.String && step.Key.IsKnown() && !step.Key.IsNull() {
				name = step.Key.AsString()
			}
		}
		if name == "" {
			continue
		}
		v, ok := "", false
		if c.env != nil {
			v, ok = c.env(name)
		}
		if !ok {
			r := t.SourceRange()
			diags = append(diags, &hcl.Diagnostic{
				Severity: hcl.DiagError, Summary: "Environment variable not set", Subject: &r,
				Detail: fmt.Sprintf("%s is not in the environment of this process. Set it before rbee starts, or write the value here.", name),
			})
			vars[name] = cty.UnknownVal(cty.String)
			continue
		}
		vars[name] = cty.StringVal(v)
	}
	return &hcl.EvalContext{
		Variables: map[string]cty.Value{"env": cty.ObjectVal(vars)},
		Functions: map[string]function.Function{
			"concat": stdlib.ConcatFunc, "format": stdlib.FormatFunc, "join": stdlib.JoinFunc,
			"lower": stdlib.LowerFunc, "split": stdlib.SplitFunc, "trimspace": stdlib.TrimSpaceFunc, "upper": stdlib.UpperFunc,
		},
	}, diags
}
