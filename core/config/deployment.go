package config

import (
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"

	"github.com/rbee-project/rbee/core"
)

// deploymentAttribute is an attribute of a deployment block.
type deploymentAttribute struct {
	name     string
	required bool
	want     cty.Type
	words    string                                         // required form of its value, for people
	set      func(s *core.DeploymentSpec, text string) bool // returns false if text is not such a value
}

func deploymentAttributes() []deploymentAttribute {
	text := func(to func(*core.DeploymentSpec) *string) func(*core.DeploymentSpec, string) bool {
		return func(s *core.DeploymentSpec, v string) bool {
			*to(s) = v
			return true
		}
	}
	list := func(to func(*core.DeploymentSpec) *[]string) func(*core.DeploymentSpec, string) bool {
		return func(s *core.DeploymentSpec, v string) bool {
			if v != "" {
				*to(s) = strings.Split(v, ",")
			}
			return true
		}
	}
	const words, whole, names = "a text", "a whole number", "a list of texts without commas"
	return []deploymentAttribute{
		{"model", true, cty.String, words, text(func(s *core.DeploymentSpec) *string { return &s.Model })},
		{"type", false, cty.String, words, text(func(s *core.DeploymentSpec) *string { return &s.Type })},
		{"devices", false, cty.List(cty.String), names, list(func(s *core.DeploymentSpec) *[]string { return &s.Devices })},
		{"hives", false, cty.List(cty.String), names, list(func(s *core.DeploymentSpec) *[]string { return &s.Hives })},
		{"replicas", false, cty.Number, whole, number(func(s *core.DeploymentSpec) *int { return &s.Replicas })},
		{"slots", false, cty.Number, whole, number(func(s *core.DeploymentSpec) *int { return &s.Slots })},
		{"context_tokens", false, cty.Number, whole, number(func(s *core.DeploymentSpec) *int { return &s.ContextTokens })},
		{"priority", false, cty.Number, whole, number(func(s *core.DeploymentSpec) *int { return &s.Priority })},
	}
}

func number(to func(*core.DeploymentSpec) *int) func(*core.DeploymentSpec, string) bool {
	return func(s *core.DeploymentSpec, text string) (ok bool) {
		n, err := strconv.Atoi(text)
		*to(s) = n
		return err == nil
	}
}

// Deployments reads the deployment blocks of the files in paths, in order, and of the *.hcl and
// *.json files of folders. A block without replicas gets one. The list is nil if the diagnostics
// have errors.
func Deployments(paths []string, env Env) ([]core.DeploymentSpec, *Diagnostics) {
	l := newLoader(defaults(env))
	out := []core.DeploymentSpec{}
	for _, name := range l.list(paths) {
		out = append(out, l.deployments(name)...)
	}
	if len(out) == 0 && !l.diags.HasErrors() {
		l.add(errorf(nil, "No deployment", "There is no block deployment \"NAME\" in %s.", strings.Join(paths, ", ")))
	}
	if len(out) > core.MaxDeployments {
		l.add(errorf(nil, "Too many deployments", "There are %d blocks, a cluster takes %d deployments.", len(out), core.MaxDeployments))
	}
	d := &Diagnostics{List: l.diags, files: l.parser.Files()}
	if d.HasErrors() {
		return nil, d
	}
	return out, d
}

func (l *loader) deployments(name string) []core.DeploymentSpec {
	f, diags := l.parse(name)
	l.add(diags)
	if diags.HasErrors() {
		return nil
	}
	content, diags := f.Body.Content(&hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{{Type: "deployment", LabelNames: []string{"name"}}}})
	l.add(diags)
	var out []core.DeploymentSpec
	for _, b := range content.Blocks {
		if l.once("deployment "+b.Labels[0], b) {
			out = append(out, l.deployment(b))
		}
	}
	return out
}

func (l *loader) deployment(b *hcl.Block) core.DeploymentSpec {
	s := core.DeploymentSpec{Name: b.Labels[0], Replicas: 1}
	schema := &hcl.BodySchema{}
	for _, a := range deploymentAttributes() {
		schema.Attributes = append(schema.Attributes, hcl.AttributeSchema{Name: a.name, Required: a.required})
	}
	content, diags := b.Body.Content(schema)
	l.add(diags)
	sound := !diags.HasErrors()
	for _, a := range deploymentAttributes() {
		given := content.Attributes[a.name]
		if given == nil {
			continue
		}
		text, ok := l.eval(given, a.want, a.words)
		if ok && !a.set(&s, text) {
			l.add(errorf(given.Expr.Range().Ptr(), "Unsuitable value", "%s must be %s.", a.name, a.words))
			ok = false
		}
		sound = sound && ok
	}
	if err := s.Check(); sound && err != nil {
		l.add(errorf(&b.DefRange, "Unsuitable value", "%s. %s", err, core.HintOf(err)))
	}
	return s
}
