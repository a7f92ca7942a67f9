package pluginhost

import (
	"fmt"
	"strings"

	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"

	"github.com/rbee-project/rbee/plugins/sdk"
)

// SchemaHCL renders a plugin's schema as a documented block that parses: required attributes with a
// value to replace, others with their defaults, and those without a default commented out.
func SchemaHCL(i sdk.Info, s sdk.Schema) string {
	var b strings.Builder
	comment(&b, i.Summary)
	engine := ""
	if i.Engine.Name != "" {
		engine = fmt.Sprintf(", with %s %s", i.Engine.Name, i.Engine.Version)
	}
	comment(&b, fmt.Sprintf("Plugin rbee-%s-%s %s%s.", i.Kind, i.Name, i.Version, engine))
	fmt.Fprintf(&b, "%s %q {\n", i.Kind, i.Name)
	if len(s.Attributes)+len(s.Blocks) == 0 {
		b.WriteString("# There is nothing to set.\n")
	}
	b.WriteString("config {\n")
	render(&b, s, 0)
	b.WriteString("}\n}\n")
	return string(hclwrite.Format([]byte(b.String())))
}

func comment(b *strings.Builder, text string) {
	for line := range strings.SplitSeq(text, "\n") {
		if line = strings.TrimSpace(strings.ToValidUTF8(line, "?")); line != "" {
			fmt.Fprintf(b, "# %s\n", line)
		}
	}
}

func render(b *strings.Builder, s sdk.Schema, depth int) {
	if depth > maxSchemaDepth {
		return
	}
	for n, a := range s.Attributes {
		if n > 0 {
			b.WriteString("\n")
		}
		typ, err := parseType(a.Type)
		if err != nil || checkName(a.Name, nil) != nil {
			comment(b, fmt.Sprintf("%q cannot be set: the plugin describes it wrongly.", a.Name))
			continue
		}
		comment(b, a.Doc)
		what := a.Type
		if a.Required {
			what += ", required"
		}
		if a.Sensitive {
			what += ", secret"
		}
		comment(b, what)
		value, prefix := example(typ), ""
		switch v, err := defaultValue(a, typ); {
		case a.Required:
		case !jsonNull(a.Default) && err == nil:
			value = v
		default:
			prefix = "# "
		}
		text := string(hclwrite.TokensForValue(value).Bytes())
		if prefix != "" {
			text = strings.ReplaceAll(text, "\n", "\n"+prefix)
		}
		fmt.Fprintf(b, "%s%s = %s\n", prefix, a.Name, text)
	}
	for n, k := range s.Blocks {
		if n+len(s.Attributes) > 0 {
			b.WriteString("\n")
		}
		comment(b, k.Doc)
		switch {
		case k.Required && k.Repeated:
			comment(b, "block, required, may be repeated")
		case k.Required:
			comment(b, "block, required")
		case k.Repeated:
			comment(b, "block, may be left out or repeated")
		default:
			comment(b, "block, may be left out")
		}
		fmt.Fprintf(b, "%s {\n", k.Name)
		render(b, k.Schema, depth+1)
		b.WriteString("}\n")
	}
}

// example returns a value of the type, to show its form.
func example(t cty.Type) cty.Value {
	switch {
	case t == cty.Number:
		return cty.NumberIntVal(0)
	case t == cty.Bool:
		return cty.False
	case t.IsListType(), t.IsSetType():
		return cty.ListVal([]cty.Value{example(t.ElementType())})
	case t.IsMapType():
		return cty.MapVal(map[string]cty.Value{"key": example(t.ElementType())})
	case t.IsTupleType():
		var out []cty.Value
		for _, e := range t.TupleElementTypes() {
			out = append(out, example(e))
		}
		return cty.TupleVal(out)
	case t.IsObjectType():
		out := map[string]cty.Value{}
		for k, e := range t.AttributeTypes() {
			out[k] = example(e)
		}
		return cty.ObjectVal(out)
	}
	return cty.StringVal("")
}
