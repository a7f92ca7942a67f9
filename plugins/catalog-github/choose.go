package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// kindOf returns the kind of a file by its name; empty: not usable by rbee.
func kindOf(name string) catalog.ItemKind {
	lower := strings.ToLower(name)
	if strings.HasSuffix(lower, ".gguf") {
		return catalog.KindModel
	}
	for _, ending := range archives() {
		if strings.HasSuffix(lower, ending) {
			return catalog.KindEngine
		}
	}
	return ""
}

func archives() []string { return []string{".zip", ".tgz", ".tar.gz"} }

// systems returns the words that stand for each system in file names.
func systems() map[string][]string {
	return map[string][]string{
		"linux": {"linux", "ubuntu", "debian", "manylinux"}, "darwin": {"macos", "darwin", "osx", "mac", "apple", "xcframework", "ios"}, "windows": {"windows", "win", "win32", "win64"},
		"android": {"android"}, "freebsd": {"freebsd"}, "openeuler": {"openeuler"},
	}
}

func architectures() map[string][]string {
	return map[string][]string{
		"amd64": {"x64", "amd64", "x86_64"}, "arm64": {"arm64", "aarch64"}, "386": {"x86", "i386", "i686"}, "s390x": {"s390x"}, "riscv64": {"riscv64"}, "ppc64le": {"ppc64le"}, "armv7": {"armv7", "armhf"},
	}
}

func backends() []string {
	return []string{"cuda", "vulkan", "rocm", "hip", "sycl", "opencl", "kompute", "musa", "cann", "openvino", "blas", "radeon", "adreno", "kleidiai"}
}

// tokens splits a name into words, keeping x86_64 whole.
func tokens(name string) []string {
	const whole = "x8664"
	lower := strings.ReplaceAll(strings.ToLower(name), "x86_64", whole)
	words := strings.FieldsFunc(lower, func(r rune) bool { return strings.ContainsRune("-_. +~@", r) })
	for i, w := range words {
		if w == whole {
			words[i] = "x86_64"
		}
	}
	return words
}

// mentions returns which of things a name mentions.
func mentions(words []string, things map[string][]string) []string {
	var out []string
	for thing, names := range things {
		if slices.ContainsFunc(words, func(w string) bool { return slices.Contains(names, w) }) {
			out = append(out, thing)
		}
	}
	return out
}

// fits reports whether a file is for this system, architecture and backend. Its name must mention
// system and architecture, and no other backend.
func fits(name, goos, goarch, backend string) bool {
	words := tokens(name)
	if !slices.Equal(mentions(words, systems()), []string{goos}) || !slices.Equal(mentions(words, architectures()), []string{goarch}) {
		return false
	}
	var said []string
	for _, b := range backends() {
		if slices.ContainsFunc(words, func(w string) bool { return w == b || strings.TrimRight(w, "0123456789") == b }) {
			said = append(said, b)
		}
	}
	if backend == "cpu" || backend == "metal" && goos == "darwin" {
		return len(said) == 0
	}
	return slices.Contains(said, backend)
}

// choose finds the asset that a reference means, with notes about the choice for the user.
func (s *source) choose(ref reference, all []asset) (asset, []string, error) {
	var usable []asset
	var names []string
	for _, a := range all {
		if kindOf(a.Name) != "" && assetOK.MatchString(a.Name) && a.State != "starter" {
			usable = append(usable, a)
			names = append(names, a.Name)
		}
	}
	list := "It has no file that rbee can use: those are GGUF models and archives."
	if len(names) > 0 {
		list = "There are " + strings.Join(names[:min(len(names), 20)], ", ") + "."
	}
	if ref.asset != "" {
		i := slices.IndexFunc(usable, func(a asset) bool { return a.Name == ref.asset })
		if i < 0 {
			return asset{}, nil, sdk.WithHint(fmt.Errorf("release %s of %s has no file %s that rbee can use: %w", ref.tag, ref.id(), ref.asset, catalog.ErrNotFound), "%s", list)
		}
		return usable[i], nil, nil
	}
	backend := ref.backend
	if backend == "" {
		backend = s.set.backend
	}
	var fit []asset
	for _, a := range usable {
		// A package with only the driver's libraries is not an engine.
		if fits(a.Name, s.goos, s.goarch, backend) && !strings.HasPrefix(a.Name, "cudart-") {
			fit = append(fit, a)
		}
	}
	if len(usable) == 1 && ref.backend == "" && len(mentions(tokens(names[0]), systems())) == 0 {
		fit = usable // the only one, for all systems
	}
	what := fmt.Sprintf("%s/%s with backend %s", s.goos, s.goarch, backend)
	switch {
	case len(fit) == 0:
		return asset{}, nil, sdk.WithHint(fmt.Errorf("release %s of %s has no file for %s: %w", ref.tag, ref.id(), what, catalog.ErrNotFound), "%s", list)
	case len(fit) > 1:
		var several []string
		for _, a := range fit {
			several = append(several, a.Name)
		}
		return asset{}, nil, sdk.WithHint(fmt.Errorf("release %s of %s has %d files for %s: %w", ref.tag, ref.id(), len(fit), what, catalog.ErrInvalid),
			"Name the one you mean, such as github:%s@%s/%s. There are %s.", ref.id(), ref.tag, several[0], strings.Join(several, ", "))
	}
	var notes []string
	if len(usable) > 1 {
		notes = append(notes, fmt.Sprintf("%s is chosen for %s, of %d files", fit[0].Name, what, len(usable)))
	}
	return fit[0], notes, nil
}
