package pluginhost

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"

	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// maxPaths bounds how many paths of a block or an environment a plugin may read.
const maxPaths = 256

// reads lists what a plugin may read because its user configured it: paths in its block, and in the
// variables that it sees.
func (h *Host) reads(s Spec, env []string) []string {
	paths := blockPaths(s)
	for _, path := range slices.Clone(paths) {
		paths = append(paths, venv(path)...)
	}
	var values []string
	for _, entry := range env {
		name, value, _ := strings.Cut(entry, "=")
		if name != "HOME" && name != "TMPDIR" {
			values = append(values, filepath.SplitList(value)...)
		}
	}
	for _, v := range values {
		if filepath.IsAbs(v) && len(paths) < maxPaths {
			paths = append(paths, v)
		}
	}
	if isCatalogFile(s) && bodyAllows(s.plugin, "allow_any") {
		paths = append(paths, h.o.Walls.Homes...)
	}
	return paths
}

// blockPaths lists the absolute paths in a plugin's block.
func blockPaths(s Spec) []string {
	paths := slices.Concat(s.plugin.Read, s.plugin.Write)
	for _, v := range bodyStrings(s.plugin.Body, s.plugin) {
		if filepath.IsAbs(v) && len(paths) < maxPaths {
			paths = append(paths, v)
		}
	}
	return paths
}

func isCatalogFile(s Spec) bool {
	return s.Kind == sdk.KindCatalog && filepath.Base(s.Executable) == "rbee-catalog-file"
}

// originFiles returns variables, beside those that the user has set, that point plugins to files
// that their origin's tools keep in the user's home folder, as the plugin has another home. A
// missing file gets no variable: in a closed home folder it would look like an unreadable one.
func originFiles(executable string, environ []string) []string {
	get := func(name string) string { v, _ := lookup(environ, name); return v }
	home := get("HOME")
	if home == "" {
		return nil
	}
	var out []string
	add := func(name, path string) {
		if _, err := os.Stat(path); err == nil {
			out = append(out, name+"="+path)
		}
	}
	hub := filepath.Join(cmp.Or(get("XDG_CACHE_HOME"), filepath.Join(home, ".cache")), "huggingface")
	switch executable {
	case "rbee-catalog-huggingface":
		if get("HF_HOME") == "" {
			add("HF_HOME", hub)
		}
	case "rbee-worker-openai": // caches of the servers that it starts
		if get("HF_HOME") == "" {
			add("HF_HOME", hub)
		}
		if get("OLLAMA_MODELS") == "" {
			add("OLLAMA_MODELS", filepath.Join(home, ".ollama", "models"))
		}
	case "rbee-catalog-npm":
		if get("NPM_CONFIG_USERCONFIG") == "" && get("npm_config_userconfig") == "" {
			add("npm_config_userconfig", filepath.Join(home, ".npmrc"))
		}
	}
	return out
}

// venv lists what a program in a Python virtual environment needs: the environment, and the Python
// that it was created with.
func venv(program string) []string {
	dir := filepath.Dir(filepath.Dir(program))
	if _, err := os.Stat(filepath.Join(dir, "pyvenv.cfg")); err != nil || filepath.Base(filepath.Dir(program)) != "bin" {
		return nil
	}
	python, err := filepath.EvalSymlinks(filepath.Join(dir, "bin", "python3"))
	if err != nil {
		return []string{dir}
	}
	if at := filepath.Dir(python); filepath.Base(at) == "bin" {
		if _, err := os.Stat(filepath.Join(filepath.Dir(at), "lib")); err == nil {
			return []string{dir, python, filepath.Join(filepath.Dir(at), "lib")} // not their siblings, as in ~/.local
		}
	}
	return []string{dir, python}
}

// lookup returns the last value of a variable, which is the effective one.
func lookup(environ []string, name string) (string, bool) {
	for _, e := range slices.Backward(environ) {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v, true
		}
	}
	return "", false
}

// bodyStrings lists the strings of a config block, including those in lists, maps and nested
// blocks. It omits what cannot be evaluated: the plugin's schema reports what is wrong with it.
func bodyStrings(body hcl.Body, p config.Plugin) []string {
	var out []string
	for _, e := range bodyExpressions(body) {
		ctx, diags := p.EvalContext(e.Variables())
		if diags.HasErrors() {
			continue
		}
		v, diags := e.Value(ctx)
		if diags.HasErrors() {
			continue
		}
		// The callback returns no error.
		_ = cty.Walk(v, func(_ cty.Path, v cty.Value) (bool, error) {
			if v.Type() == cty.String && v.IsKnown() && !v.IsNull() {
				out = append(out, v.AsString())
			}
			return true, nil
		})
	}
	return out
}

func bodyExpressions(body hcl.Body) (out []hcl.Expression) {
	native, ok := body.(*hclsyntax.Body)
	if !ok { // JSON, where nested blocks look like attributes
		if body == nil {
			return nil
		}
		attributes, _ := body.JustAttributes() // as far as they are readable
		for _, a := range attributes {
			out = append(out, a.Expr)
		}
		return out
	}
	for _, a := range native.Attributes {
		out = append(out, a.Expr)
	}
	for _, b := range native.Blocks {
		out = append(out, bodyExpressions(b.Body)...)
	}
	return out
}

// bodyAllows reports whether an attribute of a config block is true.
func bodyAllows(p config.Plugin, name string) bool {
	if p.Body == nil {
		return false
	}
	content, _, _ := p.Body.PartialContent(&hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: name}}})
	if content == nil || content.Attributes[name] == nil {
		return false
	}
	e := content.Attributes[name].Expr
	ctx, diags := p.EvalContext(e.Variables())
	if diags.HasErrors() {
		return false
	}
	v, diags := e.Value(ctx)
	return !diags.HasErrors() && v.Type() == cty.Bool && v.IsKnown() && !v.IsNull() && v.True()
}
