package main

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// link is an address with the digest of its contents.
type link struct {
	url    *url.URL // without a fragment
	digest string   // "sha256:<hex>" or "sha512:<hex>"; empty: not known
}

var (
	digestOK = regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$`)
	nameOK   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$`)
	partOK   = regexp.MustCompile(`^(.+)-([0-9]{5})-of-([0-9]{5})\.gguf$`)
	fileOK   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._+ -]{0,199}$`)
)

// maxParts bounds the files of a split model.
const maxParts = 1000

func isURL(text string) bool {
	return strings.HasPrefix(text, "https://") || strings.HasPrefix(text, "http://")
}

// parseLink parses an address followed by #sha256=<hex>, #sha512=<hex>, @sha256:<hex> or
// @sha512:<hex>, or without a digest.
func parseLink(text string) (link, error) {
	u, err := url.Parse(text)
	if err != nil || !isURL(text) || u.Host == "" {
		return link{}, malformed("the address cannot be read")
	}
	if u.User != nil {
		return link{}, malformed("the address of %s has a name or password in it: put a token into the block catalog \"http\"", u.Host)
	}
	l := link{url: u}
	if u.Fragment != "" {
		name, sum, _ := strings.Cut(u.Fragment, "=")
		l.digest = strings.ToLower(name + ":" + sum)
	} else if i := strings.LastIndex(u.Path, "@sha"); i >= 0 && u.RawQuery == "" {
		l.digest = strings.ToLower(u.Path[i+1:])
		u.Path, u.RawPath = u.Path[:i], ""
	}
	u.Fragment, u.RawFragment = "", ""
	if l.digest != "" && !digestOK.MatchString(l.digest) {
		return link{}, malformed("%q is no digest", l.digest)
	}
	return l, nil
}

func malformed(format string, args ...any) error {
	return sdk.WithHint(fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), catalog.ErrInvalid),
		"A reference is written https://HOST/FILE.gguf#sha256=DIGEST, or http:NAME for a name of an index document.")
}

// String returns the link as a reference.
func (l link) String() string {
	if l.digest == "" {
		return l.url.String()
	}
	return l.url.String() + "#" + strings.Replace(l.digest, ":", "=", 1)
}

// file returns the name of the file.
func (l link) file() (string, error) {
	base := path.Base(l.url.Path)
	if !fileOK.MatchString(base) {
		return "", malformed("the address of %s ends in no name of a file", l.url.Host)
	}
	return base, nil
}

// kindOf returns the kind of a file by its name.
func kindOf(file string) catalog.ItemKind {
	for _, ending := range []string{".zip", ".tgz", ".tar.gz"} {
		if strings.HasSuffix(strings.ToLower(file), ending) {
			return catalog.KindEngine
		}
	}
	return catalog.KindModel
}

// localName returns the local name of a file.
func localName(file string) string {
	if m := partOK.FindStringSubmatch(file); m != nil {
		return m[1]
	}
	for _, ending := range []string{".gguf", ".zip", ".tgz", ".tar.gz"} {
		if n := len(file) - len(ending); n > 0 && strings.EqualFold(file[n:], ending) {
			return file[:n]
		}
	}
	return file
}

// parts returns the addresses of all files of a split model; nil if it is not split.
func (l link) parts() ([]link, error) {
	base := path.Base(l.url.Path)
	m := partOK.FindStringSubmatch(base)
	if m == nil {
		return nil, nil
	}
	n, _ := strconv.Atoi(m[3]) // five digits
	switch {
	case n < 1 || n > maxParts:
		return nil, malformed("%d parts are too many or too few", n)
	case n > 1 && l.digest != "":
		return nil, sdk.WithHint(fmt.Errorf("one digest stands for one of %d files: %w", n, catalog.ErrInvalid), "List the parts with their digests in an index document, or leave the digest out.")
	}
	var out []link
	for i := range n {
		u := *l.url
		u.Path, u.RawPath = fmt.Sprintf("%s/%s-%05d-of-%s.gguf", strings.TrimSuffix(path.Dir(u.Path), "/"), m[1], i+1, m[3]), ""
		out = append(out, link{url: &u, digest: l.digest})
	}
	return out, nil
}

// digestOf returns the digest that a server sends with a file, by RFC 9530 and its predecessor.
func digestOf(h http.Header) string {
	for _, name := range []string{"Repr-Digest", "Digest"} {
		for part := range strings.SplitSeq(h.Get(name), ",") {
			algorithm, value, _ := strings.Cut(strings.TrimSpace(part), "=")
			sum, err := base64.StdEncoding.DecodeString(strings.Trim(value, ":"))
			if d := strings.ReplaceAll(strings.ToLower(algorithm), "-", "") + ":" + hex.EncodeToString(sum); err == nil && digestOK.MatchString(d) {
				return d
			}
		}
	}
	return ""
}
