package main

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// latest is the tag of the newest release.
const latest = "latest"

// reference is owner/repo[@tag[/asset|:backend]].
type reference struct {
	owner, repo string
	tag         string // latest: the newest release
	asset       string // empty: chosen by operating system, architecture and backend
	backend     string // empty: that of the configuration
}

var (
	ownerOK   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,38}$`)
	repoOK    = regexp.MustCompile(`^[A-Za-z0-9._-]{1,100}$`)
	tagOK     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,199}$`)
	assetOK   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._+ @~-]{0,249}$`)
	backendOK = regexp.MustCompile(`^[a-z0-9]{1,20}$`)
)

func parseRef(text string) (reference, error) {
	name, rest, tagged := strings.Cut(text, "@")
	r := reference{tag: latest}
	r.owner, r.repo, _ = strings.Cut(name, "/")
	if !ownerOK.MatchString(r.owner) || !repoOK.MatchString(r.repo) || strings.Trim(r.repo, ".") == "" {
		return r, malformed("%.100q is no repository", name)
	}
	if !tagged {
		return r, nil
	}
	var chosen, named bool
	if r.tag, r.asset, named = strings.Cut(rest, "/"); !named {
		r.tag, r.backend, chosen = strings.Cut(rest, ":")
	}
	switch {
	case !tagOK.MatchString(r.tag):
		return r, malformed("%.100q is no tag of a release; those with a slash in it cannot be used", r.tag)
	case named && !assetOK.MatchString(r.asset):
		return r, malformed("%.100q is not a file of a release", r.asset)
	case chosen && !backendOK.MatchString(r.backend):
		return r, malformed("%.100q is no backend", r.backend)
	}
	return r, nil
}

func malformed(format string, args ...any) error {
	return sdk.WithHint(fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), catalog.ErrInvalid),
		"A reference is written github:OWNER/REPO@TAG/FILE, or github:OWNER/REPO@latest for the file that fits this machine, with :cuda or another backend behind it.")
}

func (r reference) id() string { return r.owner + "/" + r.repo }

func (r reference) String() string {
	s := r.id() + "@" + r.tag
	switch {
	case r.asset != "":
		s += "/" + r.asset
	case r.backend != "":
		s += ":" + r.backend
	}
	return s
}
