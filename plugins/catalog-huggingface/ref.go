package main

import (
	"fmt"
	"path"
	"regexp"
	"strings"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// reference is org/repo[:QUANT|/file][@revision].
type reference struct {
	org, repo string
	quant     string // as written; empty: the default, or given by file
	file      string // path in the repository; empty: given by quant
	revision  string // branch, tag or commit; empty: main
}

var (
	nameOK     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$`)
	quantOK    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$`)
	revisionOK = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$`)
	commitOK   = regexp.MustCompile(`^[0-9a-f]{40}$`)
)

func parseRef(text string) (reference, error) {
	var r reference
	rest := text
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest, r.revision = rest[:i], rest[i+1:]
		if !revisionOK.MatchString(r.revision) || strings.Contains(r.revision, "..") {
			return r, malformed(text, "%q is no revision", r.revision)
		}
	}
	org, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return r, malformed(text, "it names no repository")
	}
	r.org = org
	if repo, file, ok := strings.Cut(rest, "/"); ok {
		r.repo, r.file = repo, file
		if !fileOK(file) {
			return r, malformed(text, "%q is no file of a repository", file)
		}
	} else {
		r.repo, r.quant, ok = strings.Cut(rest, ":")
		if ok && !quantOK.MatchString(r.quant) {
			return r, malformed(text, "%q is no quantisation", r.quant)
		}
	}
	for _, name := range []string{r.org, r.repo} {
		if !nameOK.MatchString(name) || strings.Contains(name, "..") || strings.Contains(name, "--") {
			return r, malformed(text, "%q is no name on the Hub", name)
		}
	}
	return r, nil
}

// fileOK reports whether a path stays in its repository and can be part of a reference.
func fileOK(file string) bool {
	return file != "" && len(file) <= 1000 && path.Clean("/"+file) == "/"+file && !strings.ContainsAny(file, "\\\x00\r\n@")
}

func malformed(text, format string, args ...any) error {
	return sdk.WithHint(fmt.Errorf("%q: %s: %w", text, fmt.Sprintf(format, args...), catalog.ErrInvalid),
		"A reference is written hf:ORG/REPO, hf:ORG/REPO:Q4_K_M or hf:ORG/REPO/FILE.gguf, with @REVISION behind it for another one than main.")
}

func (r reference) id() string { return r.org + "/" + r.repo }

func (r reference) rev() string {
	if r.revision == "" {
		return "main"
	}
	return r.revision
}

func (r reference) String() string {
	s := r.id()
	switch {
	case r.file != "":
		s += "/" + r.file
	case r.quant != "":
		s += ":" + r.quant
	}
	if r.revision != "" {
		s += "@" + r.revision
	}
	return s
}
