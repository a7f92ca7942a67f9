package config

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"

	"github.com/rbee-project/rbee/core"
)

// Load reads the files in paths, and the *.hcl and *.json files of the folders in paths. It merges
// them and applies environment and flags. Without any path it returns the defaults, with both roles
// enabled. The Config is nil if the diagnostics have errors.
func Load(paths []string, env Env, flags ...Flag) (*Config, *Diagnostics) {
	c := defaults(env)
	l := newLoader(c)
	if len(paths) == 0 {
		c.Queen.Enabled, c.Hive.Enabled = true, true
	}
	for _, name := range l.list(paths) {
		l.file(name)
	}
	c.files = l.parser.Files()
	l.overrides(env, flags)
	return l.finish(env)
}

// Dev returns the configuration of an agent that keeps no state: queen and hive on loopback,
// everything but the store below dataDir. The caller creates and removes dataDir. Environment and
// flags apply, except RBEE_DATA_DIR.
func Dev(dataDir string, env Env, flags ...Flag) (*Config, *Diagnostics) {
	c := defaults(env)
	c.Dev, c.Queen.Enabled, c.Hive.Enabled, c.Hive.KeepWorkers = true, true, true, false
	l := &loader{c: c}
	l.overrides(func(name string) (string, bool) {
		if name == "RBEE_DATA_DIR" {
			return "", false
		}
		return env(name)
	}, flags)
	if c.DataDir == "" {
		c.DataDir = dataDir
	}
	return l.finish(env)
}

// Settings lists every value with its origin, in the order of the documentation.
func (c *Config) Settings() []Setting {
	var out []Setting
	for _, s := range settings() {
		out = append(out, Setting{Name: s.name, Value: s.value(c), Origin: c.origins[s.name]})
	}
	return out
}

// Files returns the names of the configuration files, in the order in which they were merged.
func (c *Config) Files() []string {
	names := make([]string, 0, len(c.files))
	for name := range c.files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

type loader struct {
	c          *Config
	parser     *hclparse.Parser
	blocks     map[string]hcl.Range // where each block is defined: "bind", "worker cpu"
	attributes map[string]hcl.Range // where each setting is defined
	diags      hcl.Diagnostics
	broken     bool // a file could not be read, so its settings are unknown
}

func newLoader(c *Config) *loader {
	return &loader{c: c, parser: hclparse.NewParser(), blocks: map[string]hcl.Range{}, attributes: map[string]hcl.Range{}}
}

func (l *loader) add(d hcl.Diagnostics) { l.diags = append(l.diags, d...) }

// list returns the files of paths; those of a folder are sorted by name.
func (l *loader) list(paths []string) []string {
	var out []string
	for _, p := range paths {
		info, err := os.Stat(p)
		switch {
		case err != nil:
			l.broken = true
			l.add(errorf(nil, "No such configuration", "%s cannot be read: %s. Give a file or a folder of *.hcl and *.json files.", p, reason(err)))
			continue
		case !info.IsDir():
			out = append(out, p)
			continue
		}
		entries, err := os.ReadDir(p)
		if err != nil {
			l.add(errorf(nil, "No such configuration", "%s cannot be read: %s.", p, reason(err)))
			continue
		}
		found := false
		for _, e := range entries { // sorted by name
			ext := filepath.Ext(e.Name())
			if e.IsDir() || strings.HasPrefix(e.Name(), ".") || (ext != ".hcl" && ext != ".json") {
				continue
			}
			out = append(out, filepath.Join(p, e.Name()))
			found = true
		}
		if !found {
			l.broken = true
			l.add(errorf(nil, "Empty configuration folder", "%s has no *.hcl and no *.json file. config.hcl.example is a start.", p))
		}
	}
	return out
}

func reason(err error) error {
	if e, ok := err.(*fs.PathError); ok { //nolint:errorlint // only the outermost one repeats the path
		return e.Err
	}
	return err
}

func rootSchema() *hcl.BodySchema {
	s := &hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{{Type: "worker", LabelNames: []string{"type"}}, {Type: "catalog", LabelNames: []string{"source"}}}}
	for _, x := range settings() {
		block, _, nested := strings.Cut(x.name, ".")
		switch {
		case !nested:
			s.Attributes = append(s.Attributes, hcl.AttributeSchema{Name: x.name})
		case !slices.ContainsFunc(s.Blocks, func(b hcl.BlockHeaderSchema) bool { return b.Type == block }):
			s.Blocks = append(s.Blocks, hcl.BlockHeaderSchema{Type: block})
		}
	}
	return s
}

func (l *loader) file(name string) {
	src, err := os.ReadFile(name)
	if err != nil {
		l.add(unreadable(name, err))
		return
	}
	l.source(src, name)
}

func unreadable(name string, err error) hcl.Diagnostics {
	return errorf(nil, "No such configuration", "%s cannot be read: %s.", name, reason(err))
}

// parse parses a file of either syntax.
func (l *loader) parse(name string) (*hcl.File, hcl.Diagnostics) {
	src, err := os.ReadFile(name)
	if err != nil {
		return nil, unreadable(name, err)
	}
	if filepath.Ext(name) == ".json" {
		return l.parser.ParseJSON(src, name)
	}
	return l.parser.ParseHCL(src, name)
}

// source adds the settings of a file.
func (l *loader) source(src []byte, name string) {
	parse := l.parser.ParseHCL
	if filepath.Ext(name) == ".json" {
		parse = l.parser.ParseJSON
	}
	f, diags := parse(src, name)
	l.add(diags)
	if diags.HasErrors() {
		// the rest of a file with broken syntax would only cause misleading complaints
		l.broken = true
		return
	}
	content, diags := f.Body.Content(rootSchema())
	l.add(diags)
	l.settings("", content.Attributes)
	for _, b := range content.Blocks {
		switch b.Type {
		case "worker", "catalog":
			l.plugin(b)
		default:
			l.group(b, b.Type)
		}
	}
}

// once reports an error if a block is defined twice.
func (l *loader) once(key string, b *hcl.Block) bool {
	if first, ok := l.blocks[key]; ok {
		l.add(errorf(&b.DefRange, "Block given twice", "The block %s stands at %s already. Merge the two into one.", header(b), first))
		return false
	}
	l.blocks[key] = b.DefRange
	return true
}

func header(b *hcl.Block) string {
	out := []string{b.Type}
	for _, label := range b.Labels {
		out = append(out, strconv.Quote(label))
	}
	return strings.Join(out, " ")
}

// group reads a block of settings whose names begin with path and a dot.
func (l *loader) group(b *hcl.Block, path string) {
	if !l.once(path, b) {
		return
	}
	schema := &hcl.BodySchema{}
	for _, s := range settings() {
		rest, ok := strings.CutPrefix(s.name, path+".")
		name, _, nested := strings.Cut(rest, ".")
		switch {
		case !ok:
		case !nested:
			schema.Attributes = append(schema.Attributes, hcl.AttributeSchema{Name: name})
		case !slices.ContainsFunc(schema.Blocks, func(b hcl.BlockHeaderSchema) bool { return b.Type == name }):
			schema.Blocks = append(schema.Blocks, hcl.BlockHeaderSchema{Type: name})
		}
	}
	for old := range moved() {
		if attribute, ok := strings.CutPrefix(old, path+"."); ok {
			schema.Attributes = append(schema.Attributes, hcl.AttributeSchema{Name: attribute})
		}
	}
	content, diags := b.Body.Content(schema)
	l.add(diags)
	for old, now := range moved() {
		if a := content.Attributes[strings.TrimPrefix(old, path+".")]; a != nil && strings.HasPrefix(old, path+".") {
			l.add(errorf(&a.NameRange, "Setting moved", "%s is %s now: %s.", old, now.name, now.how))
		}
	}
	l.settings(path+".", content.Attributes)
	for _, inner := range content.Blocks {
		l.group(inner, path+"."+inner.Type)
	}
}

func (l *loader) settings(prefix string, attributes hcl.Attributes) {
	for _, s := range settings() {
		name, ok := strings.CutPrefix(s.name, prefix)
		a := attributes[name]
		if !ok || a == nil {
			continue
		}
		if first, ok := l.attributes[s.name]; ok {
			l.add(errorf(&a.NameRange, "Value given twice", "%s was set at %s already. Leave one of the two.", s.name, first))
			continue
		}
		l.attributes[s.name] = a.NameRange
		want, words := s.want(l.c)
		v, ok := l.eval(a, want, words)
		if !ok {
			continue
		}
		text := v
		if s.path {
			text = l.resolve(v, filepath.Dir(a.Range.Filename))
		}
		if err := s.assign(l.c, text); err != nil {
			l.add(errorf(a.Expr.Range().Ptr(), "Unsuitable value", "%s: %s.", s.name, err))
			continue
		}
		l.c.origins[s.name] = Origin{Source: SourceFile, Range: a.Expr.Range()}
	}
}

// place is the new name of a setting, and how to write it.
type place struct{ name, how string }

// moved returns the settings that were renamed.
func moved() map[string]place {
	return map[string]place{"hive.name": {"name", "a machine has one name, whether it is a hive or a queen. Write name = … outside of all blocks"}}
}

// eval returns the attribute's value as text, a list with commas between its elements.
func (l *loader) eval(a *hcl.Attribute, want cty.Type, words string) (string, bool) {
	v, ok := l.value(a)
	if !ok {
		return "", false
	}
	v, err := convert.Convert(v, want)
	if err != nil || v.IsNull() {
		l.add(errorf(a.Expr.Range().Ptr(), "Unsuitable value", "%s must be %s.", a.Name, words))
		return "", false
	}
	if want.IsListType() {
		var list []string
		for _, x := range v.AsValueSlice() {
			if x.IsNull() || !x.IsKnown() || x.AsString() == "" || strings.Contains(x.AsString(), ",") {
				l.add(errorf(a.Expr.Range().Ptr(), "Unsuitable value", "%s must be %s.", a.Name, words))
				return "", false
			}
			list = append(list, x.AsString())
		}
		return strings.Join(list, ","), true
	}
	text, err := convert.Convert(v, cty.String)
	if err != nil {
		l.add(errorf(a.Expr.Range().Ptr(), "Unsuitable value", "%s must be %s.", a.Name, words))
		return "", false
	}
	return text.AsString(), true
}

func (l *loader) value(a *hcl.Attribute) (cty.Value, bool) {
	ctx, diags := l.c.EvalContext(a.Expr.Variables())
	l.add(diags)
	if diags.HasErrors() {
		return cty.NilVal, false
	}
	v, diags := a.Expr.Value(ctx)
	l.add(diags)
	return v, !diags.HasErrors() && v.IsWhollyKnown()
}

// resolve makes a path absolute: "~/" is the home folder, and a relative path is relative to dir.
func (l *loader) resolve(path, dir string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		if home, _ := l.c.env("HOME"); home != "" {
			return filepath.Join(home, rest)
		}
	}
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	if abs, err := filepath.Abs(filepath.Join(dir, path)); err == nil {
		return abs
	}
	return path
}

// overrides applies environment and flags on top of the files.
func (l *loader) overrides(env Env, flags []Flag) {
	for _, s := range settings() {
		if v, ok := env(s.env()); ok && v != "" {
			l.override(s, v, Origin{Source: SourceEnv, Name: s.env()})
		}
	}
	for old, now := range moved() {
		if v, ok := env((setting{name: old}).env()); ok && v != "" {
			l.add(errorf(nil, "Setting moved", "The variable %s is %s now: %s.", (setting{name: old}).env(), (setting{name: now.name}).env(), now.how))
		}
	}
	for _, f := range flags {
		i := slices.IndexFunc(settings(), func(s setting) bool { return s.name == f.Name })
		if i < 0 {
			l.add(errorf(nil, "Unknown setting", "There is no setting %q.%s", f.Name, didYouMean(f.Name, settingNames())))
			continue
		}
		l.override(settings()[i], f.Value, Origin{Source: SourceFlag, Name: f.Name})
	}
}

func (l *loader) override(s setting, text string, from Origin) {
	if s.path {
		text = l.resolve(text, ".")
	}
	if err := s.assign(l.c, text); err != nil {
		l.add(errorf(nil, "Unsuitable value", "%s %s: %s.", from.Source, from.Name, err))
		return
	}
	l.c.origins[s.name] = from
}

func settingNames() []string {
	var names []string
	for _, s := range settings() {
		names = append(names, s.name)
	}
	return names
}

// finish fills in values that depend on others and checks the whole.
func (l *loader) finish(env Env) (*Config, *Diagnostics) {
	c := l.c
	if l.broken {
		return nil, &Diagnostics{List: l.diags, files: c.files}
	}
	l.add(c.defaultFolders(env))
	for _, s := range settings() {
		if s.check == nil {
			continue
		}
		if problem := s.check(c); problem != "" {
			l.add(c.blame(s.name, "Unsuitable value", problem))
		}
	}
	l.roles()
	l.tls()
	if loopback, ok := isLoopback(c.Bind.Address); ok && !loopback && c.Insecure && !c.TLS.Given() {
		d := c.blame("insecure", "Insecure", fmt.Sprintf("As long as this machine is in no cluster, everybody who can reach %s port %d can use and control its rbee: there is no TLS, and there are no access tokens.", c.Bind.Address, c.Bind.HTTPPort))
		d[0].Severity = hcl.DiagWarning
		l.add(d)
	}
	byLabel := func(a, b Plugin) int { return strings.Compare(a.Label, b.Label) }
	slices.SortFunc(c.Workers, byLabel)
	slices.SortFunc(c.Catalogs, byLabel)
	for _, list := range [][]Plugin{c.Workers, c.Catalogs} {
		for i := range list {
			list[i].owner = c
		}
	}
	d := &Diagnostics{List: l.diags, files: c.files}
	if d.HasErrors() {
		return nil, d
	}
	return c, d
}

// Blame returns err as a complaint about a setting, at the place that sets its value, or nothing
// for a nil err.
func (c *Config) Blame(name, summary string, err error) hcl.Diagnostics {
	if err == nil {
		return nil
	}
	problem := err.Error() + "."
	if hint := core.HintOf(err); hint != "" {
		problem += " " + hint
	}
	return c.blame(name, summary, problem)
}

// Given reports whether a file, a variable or a flag sets a setting.
func (c *Config) Given(name string) bool { return c.origins[name].Source != SourceDefault }

// blame returns an error about a setting, at the place that sets its value.
func (c *Config) blame(name, summary, problem string) hcl.Diagnostics {
	o := c.origins[name]
	switch o.Source {
	case SourceFile:
		return errorf(&o.Range, summary, "%s: %s", name, problem)
	case SourceDefault:
		return errorf(nil, summary, "%s: %s", name, problem)
	}
	return errorf(nil, summary, "%s (from %s %s): %s", name, o.Source, o.Name, problem)
}

// RolesGiven reports whether a file, a variable or a flag sets this machine's roles. If not, it has
// both.
func (c *Config) RolesGiven() bool {
	return c.Given("queen.enabled") || c.Given("hive.enabled")
}

// DefaultRoles sets the roles unless a file, a variable or a flag sets them.
func (c *Config) DefaultRoles(queen, hive bool) {
	if !c.Given("queen.enabled") {
		c.Queen.Enabled = queen
	}
	if !c.Given("hive.enabled") {
		c.Hive.Enabled = hive
	}
}

// roles requires at least one role, and enables both if nothing sets them.
func (l *loader) roles() {
	c := l.c
	if c.Queen.Enabled || c.Hive.Enabled {
		return
	}
	for _, role := range []string{"queen", "hive"} {
		if name := role + ".enabled"; c.origins[name].Source != SourceDefault {
			l.add(c.blame(name, "Nothing to do", "An agent is a queen, a hive, or both: set enabled = true in the block queen, in the block hive, or in both."))
			return
		}
	}
	c.Queen.Enabled, c.Hive.Enabled = true, true
}

// tls requires all of the certificate files or none.
func (l *loader) tls() {
	c := l.c
	var given, missing []string
	for _, x := range []struct{ name, path string }{{"tls.ca_file", c.TLS.CAFile}, {"tls.cert_file", c.TLS.CertFile}, {"tls.key_file", c.TLS.KeyFile}} {
		if x.path == "" {
			missing = append(missing, x.name)
		} else {
			given = append(given, x.name)
		}
	}
	if len(given) == 0 || len(missing) == 0 {
		return
	}
	l.add(c.blame(given[0], "Incomplete", fmt.Sprintf("needs %s as well. \"rbee tls cert create\" makes all three; without any of them the certificates come with \"rbee cluster init\" or \"rbee cluster join\".", strings.Join(missing, " and "))))
}
