package main

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/mod/semver"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// packageRef is a reference: a package and a version or tag of it.
type packageRef struct {
	scope   string // "@name" or empty
	name    string // with the scope
	version string // an exact version or a tag such as latest
}

func (r packageRef) String() string { return r.name + "@" + r.version }

var (
	packageName = regexp.MustCompile(`^(@[A-Za-z0-9~-][A-Za-z0-9._~-]*/)?[A-Za-z0-9~-][A-Za-z0-9._~-]*$`)
	versionText = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+_-]*$`)
)

const refForm = "Write it as npm:@scope/package@1.2.3; without a version the one that is tagged latest is meant."

// parseRef parses "@scope/name@version", "name@version", or either without the version, which then
// is latest.
func parseRef(ref string) (packageRef, error) {
	r := packageRef{name: ref, version: "latest"}
	if i := strings.LastIndex(ref, "@"); i > 0 {
		r.name, r.version = ref[:i], ref[i+1:]
	}
	if len(r.name) > 214 || !packageName.MatchString(r.name) || strings.Contains(r.name, "..") {
		return r, sdk.WithHint(fmt.Errorf("%q is not an npm package: %w", ref, catalog.ErrInvalid), refForm)
	}
	if len(r.version) > 128 || !versionText.MatchString(r.version) {
		return r, sdk.WithHint(fmt.Errorf("%q is neither a version nor a tag: %w", r.version, catalog.ErrInvalid), "%s Ranges such as ^1.2 are not taken.", refForm)
	}
	if scope, _, ok := strings.Cut(r.name, "/"); ok {
		r.scope = scope
	}
	return r, nil
}

// nearestVersions returns the versions next to want in order, and the newest, as suggestions.
func nearestVersions(want string, versions []string, latest string) []string {
	sorted := slices.Clone(versions)
	slices.SortFunc(sorted, compareVersions)
	i, _ := slices.BinarySearchFunc(sorted, want, compareVersions)
	var out []string
	add := func(v string) {
		if v != "" && !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	if i > 0 {
		add(sorted[i-1])
	}
	if i < len(sorted) {
		add(sorted[i])
	}
	add(latest)
	return out
}

func compareVersions(a, b string) int {
	return cmp.Or(semver.Compare("v"+a, "v"+b), strings.Compare(a, b))
}
