package pluginhost

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hcldec"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// maxSchemaDepth bounds the nesting of a plugin's blocks.
const maxSchemaDepth = 16

// decodeConfig decodes a plugin's config block by the plugin's schema into the JSON for Configure.
// Diagnostics are the user's fault, an error is the plugin's: an invalid schema.
func decodeConfig(p config.Plugin, schema sdk.Schema) (json.RawMessage, hcl.Diagnostics, error) {
	spec, err := decodeSpec(schema, 0)
	if err != nil {
		return nil, nil, err
	}
	body := p.Body
	if body == nil {
		body = hcl.EmptyBody()
	}
	ctx, diags := p.EvalContext(hcldec.Variables(body, spec))
	if !diags.HasErrors() {
		var v cty.Value
		var more hcl.Diagnostics
		v, more = hcldec.Decode(body, spec, ctx)
		diags = append(diags, more...)
		if !diags.HasErrors() {
			plain, err := plainValue(v)
			if err != nil {
				return nil, nil, err
			}
			out, err := json.Marshal(plain)
			return out, place(p, schema, diags), err
		}
	}
	return nil, place(p, schema, diags), nil
}

// place gives diagnostics without a position the block's header, and removes the source lines of
// secrets.
func place(p config.Plugin, schema sdk.Schema, diags hcl.Diagnostics) hcl.Diagnostics {
	secrets := sensitiveRanges(p.Body, schema)
	for _, d := range diags {
		if d.Subject == nil || d.Subject.Filename == "" {
			d.Subject, d.Context = nil, nil
			if p.Range.Filename != "" {
				d.Subject = p.Range.Ptr()
			}
			continue
		}
		if slices.ContainsFunc(secrets, func(s hcl.Range) bool { return overlaps(s, *d.Subject) }) {
			d.Detail += fmt.Sprintf(" (%s; the line is not shown because it holds a secret)", d.Subject)
			d.Subject, d.Context, d.Expression, d.EvalContext = nil, nil, nil, nil
		}
	}
	// hcldec iterates over a map, so sort.
	slices.SortStableFunc(diags, func(a, b *hcl.Diagnostic) int {
		switch {
		case a.Subject == nil || b.Subject == nil:
			return cmp.Or(boolCompare(a.Subject == nil, b.Subject == nil), strings.Compare(a.Detail, b.Detail))
		default:
			return cmp.Or(cmp.Compare(a.Severity, b.Severity), cmp.Compare(a.Subject.Start.Byte, b.Subject.Start.Byte), strings.Compare(a.Detail, b.Detail))
		}
	})
	return diags
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

func overlaps(a, b hcl.Range) bool {
	return a.Filename == b.Filename && a.Start.Line <= b.End.Line && b.Start.Line <= a.End.Line
}

func sensitiveRanges(body hcl.Body, s sdk.Schema) []hcl.Range {
	if body == nil {
		return nil
	}
	var out []hcl.Range
	content, _, _ := body.PartialContent(bodySchema(s)) // its errors have been reported
	if content == nil {
		return nil
	}
	for _, a := range s.Attributes {
		if x := content.Attributes[a.Name]; a.Sensitive && x != nil {
			out = append(out, x.Range)
		}
	}
	for _, b := range s.Blocks {
		for _, x := range content.Blocks.OfType(b.Name) {
			out = append(out, sensitiveRanges(x.Body, b.Schema)...)
		}
	}
	return out
}

// decodeSpec converts a schema into hcl's own.
func decodeSpec(s sdk.Schema, depth int) (hcldec.ObjectSpec, error) {
	if depth > maxSchemaDepth {
		return nil, fmt.Errorf("blocks are nested more than %d deep", maxSchemaDepth)
	}
	out := hcldec.ObjectSpec{}
	for _, a := range s.Attributes {
		if err := checkName(a.Name, out); err != nil {
			return nil, err
		}
		typ, err := parseType(a.Type)
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", a.Name, err)
		}
		attr := &hcldec.AttrSpec{Name: a.Name, Type: typ, Required: a.Required}
		if jsonNull(a.Default) {
			out[a.Name] = attr
			continue
		}
		if a.Required {
			return nil, fmt.Errorf("attribute %s is required and has a default", a.Name)
		}
		v, err := defaultValue(a, typ)
		if err != nil {
			return nil, err
		}
		out[a.Name] = &hcldec.DefaultSpec{Primary: attr, Default: &hcldec.LiteralSpec{Value: v}}
	}
	for _, b := range s.Blocks {
		if err := checkName(b.Name, out); err != nil {
			return nil, err
		}
		nested, err := decodeSpec(b.Schema, depth+1)
		if err != nil {
			return nil, fmt.Errorf("block %s: %w", b.Name, err)
		}
		if b.Repeated {
			minItems := 0
			if b.Required {
				minItems = 1
			}
			out[b.Name] = &hcldec.BlockTupleSpec{TypeName: b.Name, Nested: nested, MinItems: minItems}
			continue
		}
		out[b.Name] = &hcldec.BlockSpec{TypeName: b.Name, Nested: nested, Required: b.Required}
	}
	return out, nil
}

func checkName(name string, seen hcldec.ObjectSpec) error {
	if !hclsyntax.ValidIdentifier(name) {
		return fmt.Errorf("%q is no name for an attribute or a block", name)
	}
	if _, ok := seen[name]; ok {
		return fmt.Errorf("%s is there twice", name)
	}
	return nil
}

func parseType(text string) (cty.Type, error) {
	expr, diags := hclsyntax.ParseExpression([]byte(text), "type", hcl.InitialPos)
	if diags.HasErrors() {
		return cty.NilType, fmt.Errorf("type %q: %w", text, diags)
	}
	typ, diags := typeexpr.TypeConstraint(expr)
	if diags.HasErrors() {
		return cty.NilType, fmt.Errorf("type %q: %w", text, diags)
	}
	return typ, nil
}

func defaultValue(a sdk.Attribute, typ cty.Type) (cty.Value, error) {
	if typ.HasDynamicTypes() {
		implied, err := ctyjson.ImpliedType(a.Default)
		if err != nil {
			return cty.NilVal, fmt.Errorf("default of attribute %s: %w", a.Name, err)
		}
		typ = implied
	}
	v, err := ctyjson.Unmarshal(a.Default, typ)
	if err != nil {
		return cty.NilVal, fmt.Errorf("default of attribute %s: %w", a.Name, err)
	}
	return v, nil
}

// plainValue returns a decoded value in the form that encoding/json writes.
func plainValue(v cty.Value) (any, error) {
	switch {
	case !v.IsKnown():
		return nil, errors.New("a value is not known")
	case v.IsNull():
		return nil, nil
	}
	switch t := v.Type(); {
	case t == cty.String:
		return v.AsString(), nil
	case t == cty.Bool:
		return v.True(), nil
	case t == cty.Number:
		return json.Number(v.AsBigFloat().Text('f', -1)), nil
	case t.IsListType(), t.IsSetType(), t.IsTupleType():
		out := []any{}
		for _, e := range v.AsValueSlice() {
			x, err := plainValue(e)
			if err != nil {
				return nil, err
			}
			out = append(out, x)
		}
		return out, nil
	case t.IsMapType(), t.IsObjectType():
		out := map[string]any{}
		for k, e := range v.AsValueMap() {
			x, err := plainValue(e)
			if err != nil {
				return nil, err
			}
			out[k] = x
		}
		return out, nil
	default:
		return nil, fmt.Errorf("a value of type %s cannot be handed over", t.FriendlyName())
	}
}

func bodySchema(s sdk.Schema) *hcl.BodySchema {
	out := &hcl.BodySchema{}
	for _, a := range s.Attributes {
		out.Attributes = append(out.Attributes, hcl.AttributeSchema{Name: a.Name})
	}
	for _, b := range s.Blocks {
		out.Blocks = append(out.Blocks, hcl.BlockHeaderSchema{Type: b.Name})
	}
	return out
}

// pluginDiagnostics attaches the plugin's complaints about its configuration to the lines of the
// configuration.
func pluginDiagnostics(p config.Plugin, schema sdk.Schema, name string, said sdk.Diagnostics) hcl.Diagnostics {
	var out hcl.Diagnostics
	for _, d := range said {
		x := &hcl.Diagnostic{Severity: hcl.DiagError, Summary: d.Summary, Detail: fmt.Sprintf("%s: %s", title(name), d.Detail)}
		if d.Severity == sdk.Warning {
			x.Severity = hcl.DiagWarning
		}
		if r, ok := rangeOf(p.Body, schema, d.Path); ok {
			x.Subject = r.Ptr()
		}
		out = append(out, x)
	}
	return place(p, schema, out)
}

func title(s string) string {
	if s == "" {
		return s
	}
	return string(s[0]-'a'+'A') + s[1:]
}

// rangeOf finds the place that a path leads to, or the last existing one on its way.
func rangeOf(body hcl.Body, s sdk.Schema, path []any) (hcl.Range, bool) {
	if body == nil || len(path) == 0 {
		return hcl.Range{}, false
	}
	name, ok := path[0].(string)
	if !ok {
		return hcl.Range{}, false
	}
	content, _, _ := body.PartialContent(bodySchema(s)) // its errors have been reported
	if content == nil {
		return hcl.Range{}, false
	}
	if a := content.Attributes[name]; a != nil {
		return expressionRange(a.Expr, path[1:]), true
	}
	i := slices.IndexFunc(s.Blocks, func(b sdk.Block) bool { return b.Name == name })
	if i < 0 {
		return hcl.Range{}, false
	}
	block, path := s.Blocks[i], path[1:]
	found := content.Blocks.OfType(name)
	at := 0
	if block.Repeated && len(path) > 0 {
		if n, ok := path[0].(int); ok {
			at, path = n, path[1:]
		}
	}
	if at < 0 || at >= len(found) {
		return hcl.Range{}, false
	}
	if r, ok := rangeOf(found[at].Body, block.Schema, path); ok {
		return r, true
	}
	return found[at].DefRange, true
}

func expressionRange(e hcl.Expression, path []any) hcl.Range {
	for len(path) > 0 {
		var next hcl.Expression
		switch step := path[0].(type) {
		case int:
			list, diags := hcl.ExprList(e)
			if !diags.HasErrors() && step >= 0 && step < len(list) {
				next = list[step]
			}
		case string:
			pairs, diags := hcl.ExprMap(e)
			if diags.HasErrors() {
				break
			}
			for _, kv := range pairs {
				if k, diags := kv.Key.Value(nil); !diags.HasErrors() && k.Type() == cty.String && k.IsKnown() && !k.IsNull() && k.AsString() == step {
					next = kv.Value
				}
			}
		}
		if next == nil {
			break
		}
		e, path = next, path[1:]
	}
	return e.Range()
}

// SchemaOf returns a plugin's schema as the API shows it.
func SchemaOf(s sdk.Schema) core.Schema {
	out := core.Schema{Attributes: []core.SchemaAttribute{}, Blocks: []core.SchemaBlock{}}
	for _, x := range s.Attributes {
		out.Attributes = append(out.Attributes, core.SchemaAttribute{
			Name: x.Name, Type: x.Type, Required: x.Required, Default: x.Default, Sensitive: x.Sensitive, Doc: x.Doc,
		})
	}
	for _, b := range s.Blocks {
		out.Blocks = append(out.Blocks, core.SchemaBlock{Name: b.Name, Repeated: b.Repeated, Required: b.Required, Doc: b.Doc, Schema: SchemaOf(b.Schema)})
	}
	return out
}
