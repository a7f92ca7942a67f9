// Package modelname defines the names of models: which names are valid, where an id says that a
// model is from, and which model a name means.
//
// An id is a path that tells where the model is from, with a tag after a colon that distinguishes
// variants: "hf.co/org/repo:Q4_K_M", "models.example/dir/file", or a single word such as
// "rbee-tiny". What is left when leading parts or the tag are omitted is a shorter spelling of it.
package modelname

import (
	"regexp"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// MaxBytes bounds a name. A name is also used as a file name in the store, which holds at most 255
// bytes.
const MaxBytes = 200

// maxChoices bounds the names that an error about an ambiguous name lists.
const maxChoices = 8

// A name must be usable as a shell word, as a metric label and as the rest of a URL's path without
// escaping.
var (
	valid = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]*(:[0-9]+)?(/[a-zA-Z0-9_-][a-zA-Z0-9._-]*)*(:[a-zA-Z0-9_-][a-zA-Z0-9._-]*)?$`)
	part  = regexp.MustCompile(`-[0-9]{5}-of-[0-9]{5}$`)
)

// Valid reports whether a name may be a model's id or alias.
func Valid(name string) bool {
	return len(name) <= MaxBytes && valid.MatchString(name) && !strings.Contains(name, "..")
}

// Check returns an Invalid error, with the rules as its hint, unless the name is Valid. what
// describes the name's role, such as "a model's name".
func Check(name, what string) error {
	if Valid(name) {
		return nil
	}
	return core.Errorf(core.Invalid, "%.200q cannot be %s", name, what).Hint(
		"Use up to %d letters, digits, dots, dashes and underscores, in parts with slashes between them and a tag behind a colon, such as team/chat:v2; "+
			"begin with a letter or digit, and do not write two dots in a row.", MaxBytes)
}

// Clean returns a Valid name that resembles the given one: invalid characters become dashes. A name
// that is too long loses its leading parts, or its end if it has only one part.
func Clean(name string) string {
	path, tag := split(name)
	host := ""
	if first, rest, ok := strings.Cut(path, "/"); ok {
		if h, port, ok := strings.Cut(first, ":"); ok && digits(port) {
			host, path = clean(h)+":"+port, rest
		}
	}
	var parts []string
	for p := range strings.SplitSeq(path, "/") {
		if p = clean(p); p != "" {
			parts = append(parts, p)
		}
	}
	if host != "" && len(host) <= 64 && host[0] != ':' {
		parts = append([]string{host}, parts...)
	}
	if tag = clean(tag); tag != "" {
		tag = ":" + tag[:min(len(tag), 64)]
	}
	for len(parts) > 1 && len(strings.Join(parts, "/"))+len(tag) > MaxBytes {
		parts = parts[1:]
	}
	if len(parts) == 0 {
		return "model"
	}
	if parts[0] = strings.TrimLeft(parts[0], "_-"); parts[0] == "" {
		parts[0] = "model"
	}
	path = strings.Join(parts, "/")
	name = path[:min(len(path), MaxBytes-len(tag))] + tag
	if !Valid(name) {
		return "model"
	}
	return name
}

// clean cleans one part of a name. The result does not begin with a dot.
func clean(part string) string {
	part = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '_', r == '-':
			return r
		}
		return '-'
	}, part)
	for strings.Contains(part, "..") {
		part = strings.ReplaceAll(part, "..", ".")
	}
	return strings.TrimLeft(part, ".")
}

func digits(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r < '0' || r > '9' })
}

// split returns a name without its tag, and the tag.
func split(name string) (path, tag string) {
	i := strings.LastIndexByte(name, ':')
	if i < 0 || strings.Contains(name[i:], "/") {
		return name, ""
	}
	return name[:i], name[i+1:]
}

// hub returns the prefixes that mark a model as one of the Hugging Face Hub.
func hub() []string {
	return []string{"https://huggingface.co/", "https://hf.co/", "huggingface.co/", "hf.co/", "huggingface:", "hf:"}
}

// Repository returns the Hub repository that a name begins with, and what follows it:
// "org/repo:Q4_K_M" for "hf.co/org/repo:Q4_K_M", "hf:org/repo:Q4_K_M" and others. ok is false for a
// name without a Hub prefix, and for the address of a file there, which is treated like any other.
func Repository(name string) (rest string, ok bool) {
	for _, prefix := range hub() {
		if len(name) <= len(prefix) || !strings.EqualFold(name[:len(prefix)], prefix) {
			continue
		}
		if rest = name[len(prefix):]; !strings.HasPrefix(prefix, "https:") || strings.Count(rest, "/") == 1 {
			return rest, true
		}
	}
	return "", false
}

// IsRepository reports whether a name without a Hub prefix can name a repository there: "org/repo"
// or "org/repo:Q4_K_M".
func IsRepository(name string) bool {
	path, _ := split(name)
	org, _, _ := strings.Cut(path, "/")
	return Valid(name) && strings.Count(path, "/") == 1 && !strings.ContainsAny(org, ".:")
}

// Origin returns where a catalog reference says that a model is from, as a name without a tag for
// the variant: "hf.co/org/repo/file" for "huggingface:org/repo/file.gguf@main". It may not be
// Valid: see Clean.
func Origin(ref string) string {
	if repo, ok := Repository(ref); ok {
		if i := strings.LastIndexByte(repo, '@'); i >= 0 {
			repo = repo[:i]
		}
		return "hf.co/" + stem(repo)
	}
	for _, scheme := range []string{"https://", "http://"} {
		if rest, ok := strings.CutPrefix(ref, scheme); ok {
			if i := strings.IndexAny(rest, "?#"); i >= 0 {
				rest = rest[:i]
			}
			return stem(rest)
		}
	}
	source, rest, ok := strings.Cut(ref, ":")
	if !ok {
		return stem(ref)
	}
	if source == "github" {
		repo, release, _ := strings.Cut(rest, "@")
		tag, file, _ := strings.Cut(release, "/")
		if file != "" {
			repo += "/" + stem(file) + ":" + tag
		}
		return "github.com/" + repo
	}
	return source + "/" + strings.TrimLeft(stem(rest), "/")
}

// stem returns a file's name without the suffixes common to all such files.
func stem(file string) string {
	if n := len(file) - len(".gguf"); n > 0 && strings.EqualFold(file[n:], ".gguf") {
		file = file[:n]
	}
	return part.ReplaceAllString(file, "")
}

// full returns the longest spellings of a model's names: its id, and the id derived from its
// reference and quantization, so that a model whose id is a bare file name is also found by the id
// that it would get today.
func full(m *core.Model) []string {
	names := []string{m.ID}
	if m.Ref != "" {
		origin := Origin(m.Ref)
		names = append(names, origin)
		if repo, ok := strings.CutPrefix(origin, "hf.co/"); ok && m.Quantization != "" {
			if parts := strings.SplitN(repo, "/", 3); len(parts) == 3 {
				names = append(names, "hf.co/"+parts[0]+"/"+parts[1]+":"+m.Quantization)
			}
		}
	}
	for _, name := range slices.Clone(names) {
		path, tag := split(name)
		if n := len(path) - len("-gguf"); n > 0 && strings.EqualFold(path[n:], "-gguf") {
			if tag != "" {
				tag = ":" + tag
			}
			names = append(names, path[:n]+tag)
		}
	}
	return names
}

// spells reports whether name equals full or is a shorter spelling of it. equal compares two texts.
func spells(name, full string, equal func(a, b string) bool) bool {
	path, tag := split(name)
	fullPath, fullTag := split(full)
	if tag != "" && !equal(tag, fullTag) {
		return false
	}
	if equal(path, fullPath) {
		return true
	}
	cut := len(fullPath) - len(path)
	return cut > 1 && path != "" && fullPath[cut-1] == '/' && equal(fullPath[cut:], path)
}

// Resolve returns the id of the model that a name means.
//
// The name is looked up, in this order, as an id, as an alias of the cluster, as an alias in the
// store or an exact reference, and as a shorter spelling. If nothing matches, the lookup is
// repeated ignoring case. Models with the same files count as one model: the first of their ids is
// returned.
//
// ok is false if no model has the name, or if the name is an alias of the cluster whose model is
// not among the models. A name that means several models is an Invalid error that lists them.
func Resolve(name string, models []core.Model, aliases []core.Alias) (id string, ok bool, err error) {
	if name == "" {
		return "", false, nil
	}
	exact := func(a, b string) bool { return a == b }
	for _, equal := range []func(a, b string) bool{exact, strings.EqualFold} {
		if id, ok, err = among(name, models, func(m *core.Model) bool { return equal(m.ID, name) }); ok || err != nil {
			return id, ok, err
		}
		for _, a := range aliases {
			if equal(a.Name, name) {
				return Resolve(a.Model, models, nil)
			}
		}
		if id, ok, err = among(name, models, func(m *core.Model) bool {
			return m.Ref != "" && m.Ref == name || slices.ContainsFunc(m.Aliases, func(a string) bool { return equal(a, name) })
		}); ok || err != nil {
			return id, ok, err
		}
		if id, ok, err = shorter(name, models, equal); ok || err != nil {
			return id, ok, err
		}
	}
	return "", false, nil
}

// shorter finds the model for which a name is a shorter spelling.
func shorter(name string, models []core.Model, equal func(a, b string) bool) (string, bool, error) {
	want := stem(name)
	if repo, ok := Repository(name); ok {
		want = "hf.co/" + stem(repo)
	}
	return among(name, models, func(m *core.Model) bool {
		return slices.ContainsFunc(full(m), func(f string) bool { return spells(want, f, equal) })
	})
}

// among returns the id of the only matching model.
func among(name string, models []core.Model, matches func(*core.Model) bool) (id string, ok bool, err error) {
	var found []*core.Model
	for i := range models {
		if m := &models[i]; matches(m) {
			found = append(found, m)
		}
	}
	if len(found) == 0 {
		return "", false, nil
	}
	slices.SortFunc(found, func(a, b *core.Model) int { return strings.Compare(a.ID, b.ID) })
	var ids []string
	for _, m := range found {
		if !same(found[0], m) && !slices.Contains(ids, m.ID) {
			ids = append(ids, m.ID)
		}
	}
	if len(ids) == 0 {
		return found[0].ID, true, nil
	}
	ids = append([]string{found[0].ID}, ids...)
	text := strings.Join(ids[:min(len(ids), maxChoices)], ", ")
	if len(ids) > maxChoices {
		text += ", …"
	}
	return "", false, core.Errorf(core.Invalid, "%.200q is the name of %d models: %s", name, len(ids), text).Hint(
		"Write as much of the name as tells them apart, such as %s.", ids[0])
}

// same reports whether two entries are one model: they have the same id or the same files.
func same(a, b *core.Model) bool {
	return a.ID == b.ID || a.Digest != "" && a.Digest == b.Digest && a.SizeBytes == b.SizeBytes
}

// All returns all names of these models, for suggestions: their ids, the aliases of the cluster and
// the other names that stores have for them, each once.
func All(models []core.Model, aliases []core.Alias) []string {
	var names []string
	for _, m := range models {
		names = append(append(names, m.ID), m.Aliases...)
	}
	for _, a := range aliases {
		names = append(names, a.Name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}
