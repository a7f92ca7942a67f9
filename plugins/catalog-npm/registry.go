package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// maxReplyBytes bounds a registry's description of a package, uncompressed.
const maxReplyBytes = 8 << 20

// document is a registry's description of a package, abbreviated or full. It has only the needed
// fields, and omits os, cpu and libc because packages get them wrong.
type document struct {
	Tags     map[string]string  `json:"dist-tags"`
	Versions map[string]release `json:"versions"`
}

type release struct {
	Version string          `json:"version"`
	License json.RawMessage `json:"license"` // text, or an object in old packages
	Dist    struct {
		Tarball   string `json:"tarball"`
		Integrity string `json:"integrity"`
	} `json:"dist"`
}

// lookup requests a package's document and chooses the release that the reference means.
func (c *client) lookup(ctx context.Context, ref packageRef) (release, *url.URL, error) {
	registry, err := c.settings.registry(ref.scope)
	if err != nil {
		return release{}, nil, sdk.WithHint(fmt.Errorf("%w: %w", err, catalog.ErrInvalid), "Correct it in %s.", c.settings.file())
	}
	// The slash of a scoped name is encoded as %2f, as npm does.
	u, err := url.Parse(registry.String() + strings.Replace(ref.name, "/", "%2f", 1))
	if err != nil {
		return release{}, nil, err
	}
	var doc document
	if err := c.get(ctx, u, "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*", &doc); err != nil {
		if errors.Is(err, catalog.ErrNotFound) {
			hint := fmt.Sprintf("Check the spelling. It was asked for at %s, which %s can change.", registry, c.settings.file())
			if ref.scope != "" && c.settings.authorization(u) == "" {
				hint += fmt.Sprintf(" If the package is private, set //%s/:_authToken there.", registry.Host)
			}
			return release{}, nil, sdk.WithHint(fmt.Errorf("the registry has no package %s: %w", ref.name, catalog.ErrNotFound), "%s", hint)
		}
		return release{}, nil, err
	}
	version := ref.version
	if exact, ok := doc.Tags[version]; ok {
		version = exact
	}
	r, ok := doc.Versions[version]
	if !ok {
		err := fmt.Errorf("%s has no version %s: %w", ref.name, ref.version, catalog.ErrNotFound)
		near := nearestVersions(version, slices.Collect(maps.Keys(doc.Versions)), doc.Tags["latest"])
		if len(near) == 0 {
			return release{}, nil, sdk.WithHint(err, "It has no versions at all.")
		}
		return release{}, nil, sdk.WithHint(err, "There are %s.", strings.Join(near, ", "))
	}
	if !versionText.MatchString(version) {
		return release{}, nil, fmt.Errorf("%s has an invalid version %q: %w", ref.name, version, catalog.ErrIntegrity)
	}
	r.Version = version
	return r, registry, nil
}

// get reads a JSON reply.
func (c *client) get(ctx context.Context, u *url.URL, accept string, v any) error {
	for attempt := 1; ; attempt++ {
		err := c.getOnce(ctx, u, accept, v)
		if err == nil {
			return nil
		}
		if !c.again(ctx, attempt, err) {
			return c.explain(ctx, u, err)
		}
	}
}

func (c *client) getOnce(ctx context.Context, u *url.URL, accept string, v any) error {
	ctx, kick, stop := c.watched(ctx)
	defer stop()
	resp, err := c.do(ctx, http.MethodGet, u, http.Header{"Accept": {accept}})
	if err != nil {
		return cause(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return failed(u, resp)
	}
	b, err := io.ReadAll(io.LimitReader(body{resp.Body, kick}, maxReplyBytes+1))
	if err != nil {
		return cause(ctx, err)
	}
	if len(b) > maxReplyBytes {
		return fmt.Errorf("%s answers with more than %d MiB: %w", u.Redacted(), maxReplyBytes>>20, catalog.ErrUnsupported)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return sdk.WithHint(fmt.Errorf("%s does not answer as an npm registry: %w: %w", u.Redacted(), err, catalog.ErrUnavailable),
			"Is it one? It is set by registry in %s. A portal that wants a login may be in the way.", c.settings.file())
	}
	return nil
}

// size requests the size of a file; 0 if the registry does not send it.
func (c *client) size(ctx context.Context, u *url.URL) int64 {
	ctx, _, stop := c.watched(ctx)
	defer stop()
	resp, err := c.do(ctx, http.MethodHead, u, http.Header{"Accept-Encoding": {"identity"}})
	if err != nil {
		return 0 // the transfer will report the error
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0
	}
	return max(resp.ContentLength, 0)
}

// tarball returns the address of a release's archive. Mirrors often pass on npm's own addresses
// unchanged; npm's setting replace-registry-host selects those to replace by the registry's, by
// default only those of npm's own registry.
func (c *client) tarball(r release, registry *url.URL) (*url.URL, error) {
	u, err := registry.Parse(r.Dist.Tarball)
	if r.Dist.Tarball == "" || err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return nil, fmt.Errorf("the registry names no usable address of the archive: %w", catalog.ErrIntegrity)
	}
	u.User, u.Fragment = nil, ""
	replace := c.settings.values["replace-registry-host"]
	if replace == "" || replace == "npmjs" {
		replace = strings.TrimSuffix(strings.TrimPrefix(defaultRegistry, "https://"), "/")
	}
	if !strings.EqualFold(u.Host, registry.Host) && replace != "never" && (replace == "always" || strings.EqualFold(u.Host, replace)) {
		moved := *registry
		moved.Path, moved.RawPath, moved.RawQuery = "", "", u.RawQuery
		return moved.JoinPath(registry.Path, strings.TrimPrefix(u.Path, registry.Path)), nil
	}
	return u, nil
}

// digest converts a release's integrity into the digest that hosts check: its strongest of SHA-512
// and SHA-256.
func (r release) digest() (string, error) {
	for _, a := range []struct {
		name  string
		bytes int
	}{{"sha512", 64}, {"sha256", 32}} {
		for entry := range strings.FieldsSeq(r.Dist.Integrity) {
			entry, _, _ = strings.Cut(entry, "?")
			text, ok := strings.CutPrefix(entry, a.name+"-")
			if !ok {
				continue
			}
			sum, err := base64.StdEncoding.DecodeString(text)
			if err != nil || len(sum) != a.bytes {
				return "", fmt.Errorf("the registry's integrity %q is not a digest: %w", entry, catalog.ErrIntegrity)
			}
			return a.name + ":" + hex.EncodeToString(sum), nil
		}
	}
	return "", sdk.WithHint(fmt.Errorf("the registry publishes no SHA-512 or SHA-256 of it: %w", catalog.ErrIntegrity),
		"Without one the archive cannot be checked. Choose a newer version, or a registry that passes on the field dist.integrity.")
}

// license returns the release's licence, if it is plain text.
func (r release) license() string {
	var text string
	var object struct {
		Type string `json:"type"`
	}
	switch {
	case json.Unmarshal(r.License, &text) == nil:
		return text
	case json.Unmarshal(r.License, &object) == nil:
		return object.Type
	}
	return ""
}

var plainFile = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,199}$`)

// fileName returns the archive's file name.
func fileName(ref packageRef, version string, u *url.URL) string {
	if base := path.Base(u.Path); plainFile.MatchString(base) {
		return base
	}
	return path.Base(ref.name) + "-" + version + ".tgz"
}
