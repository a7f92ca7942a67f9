package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
)

// release is a release of a repository.
type release struct {
	Tag    string  `json:"tag_name"`
	Draft  bool    `json:"draft"`
	Assets []asset `json:"assets"`
}

// asset is a file of a release.
type asset struct {
	ID     int64  `json:"id"`
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	State  string `json:"state"`  // "uploaded", or "starter" during an upload
	Digest string `json:"digest"` // "sha256:<hex>"; empty for assets from before 2025
	URL    string `json:"browser_download_url"`
}

const maxRemembered = 64 // replies of the API

// remembered is a reply with its entity tag. Asking whether it changed does not count against the
// rate limit.
type remembered struct {
	etag string
	body []byte
	link []string
}

// header returns the headers of requests to the API.
func (s *source) header() (http.Header, error) {
	h := http.Header{"Accept": {"application/vnd.github+json"}}
	h.Set("X-GitHub-Api-Version", "2022-11-28")
	token, err := s.set.bearer()
	if err != nil {
		return nil, err
	}
	if token != "" {
		h.Set("Authorization", "Bearer "+token)
	}
	return h, nil
}

// get sends a request to the API, and decodes the reply into v. It returns the address of the next
// page of a list, or the empty string.
func (s *source) get(ctx context.Context, ref reference, address string, v any) (next string, err error) {
	h, err := s.header()
	if err != nil {
		return "", err
	}
	key := address + "\n" + h.Get("Authorization")
	s.mu.Lock()
	known, ok := s.replies[key]
	s.mu.Unlock()
	if ok {
		h.Set("If-None-Match", known.etag)
	}
	reply, err := s.client.Get(ctx, address, h)
	if err != nil {
		return "", s.explain(ref, h, err)
	}
	if reply.Status == http.StatusNotModified {
		if !ok {
			return "", fmt.Errorf("%s sent an unexpected 304 Not Modified: %w", s.set.api.Host, catalog.ErrUnavailable)
		}
		reply.Body, reply.Header = known.body, http.Header{"Link": known.link}
	} else if tag := reply.Header.Get("ETag"); tag != "" {
		s.mu.Lock()
		if len(s.replies) >= maxRemembered {
			clear(s.replies)
		}
		s.replies[key] = remembered{etag: tag, body: reply.Body, link: reply.Header.Values("Link")}
		s.mu.Unlock()
	}
	if err := json.Unmarshal(reply.Body, v); err != nil {
		return "", sdk.WithHint(fmt.Errorf("%s does not answer as GitHub does: %w", s.set.api.Host, catalog.ErrUnavailable), `Check api in the block catalog "github".`)
	}
	return s.next(reply), nil
}

// release requests the release of a reference.
func (s *source) release(ctx context.Context, ref reference) (release, error) {
	u := s.set.api.JoinPath("repos", ref.owner, ref.repo, "releases")
	if ref.tag == latest {
		u = u.JoinPath("latest")
	} else {
		u = u.JoinPath("tags", url.PathEscape(ref.tag))
	}
	var r release
	if _, err := s.get(ctx, ref, u.String(), &r); err != nil {
		return release{}, err
	}
	if !tagOK.MatchString(r.Tag) {
		return release{}, fmt.Errorf("the release of %s has the tag %.100q, which cannot be used: %w", ref.id(), r.Tag, catalog.ErrUnsupported)
	}
	return r, nil
}

// explain explains GitHub's refusal.
func (s *source) explain(ref reference, h http.Header, err error) error {
	e, ok := errors.AsType[*origin.StatusError](err)
	if !ok {
		return err
	}
	const set = `Set token_file in the block catalog "github", or GITHUB_TOKEN in the agent's environment`
	token := h.Get("Authorization") != ""
	limited := e.Header.Get("X-RateLimit-Remaining") == "0" || e.Header.Get("Retry-After") != "" || e.Status == http.StatusTooManyRequests
	switch {
	case limited && (e.Status == http.StatusForbidden || e.Status == http.StatusTooManyRequests):
		until := "later"
		if at, err := strconv.ParseInt(e.Header.Get("X-RateLimit-Reset"), 10, 64); err == nil && e.Header.Get("X-RateLimit-Remaining") == "0" {
			until = "after " + time.Unix(at, 0).UTC().Format("15:04:05 MST")
		}
		if e.RetryAfter > 0 {
			until = "after " + s.now().Add(e.RetryAfter).UTC().Format("15:04:05 MST")
		}
		hint := fmt.Sprintf("Try again %s.", until)
		if !token {
			hint += " With a token the limit is much higher. " + set + "."
		}
		return sdk.WithHint(fmt.Errorf("GitHub's limit of requests is used up: %s answers %d: %w", e.URL, e.Status, catalog.ErrUnavailable), "%s", hint)
	case e.Status == http.StatusUnauthorized:
		return sdk.WithHint(fmt.Errorf("GitHub does not accept the token that rbee has: %w", catalog.ErrUnauthenticated), "It may have expired. %s.", set)
	case e.Status == http.StatusForbidden:
		return sdk.WithHint(err, "The token may not read %s, or its organisation wants it to be authorised.", ref.id())
	case e.Status == http.StatusNotFound && !token:
		return sdk.WithHint(fmt.Errorf("there is no release %s of %s: %w", ref.tag, ref.id(), catalog.ErrNotFound), "Check the spelling. If the repository is private, rbee needs a token. %s.", set)
	case e.Status == http.StatusNotFound:
		return sdk.WithHint(fmt.Errorf("there is no release %s of %s that the token may see: %w", ref.tag, ref.id(), catalog.ErrNotFound), "Check the spelling, and what the token may read.")
	}
	return err
}

var nextLink = regexp.MustCompile(`<([^>]*)>\s*;[^,]*\brel="?next"?`)

// next returns the address of the next page of a list, which must also belong to the API.
func (s *source) next(r origin.Reply) string {
	for _, link := range r.Header.Values("Link") {
		if m := nextLink.FindStringSubmatch(link); m != nil {
			if u, err := s.set.api.Parse(m[1]); err == nil && origin.SameOrigin(u, s.set.api) {
				return u.String()
			}
		}
	}
	return ""
}

// where returns the address and headers for the bytes of an asset: with a token the API's, which
// redirects, and otherwise the public address.
func (s *source) where(ref reference, id int64, public string) (string, http.Header, error) {
	h, err := s.header()
	if err != nil {
		return "", nil, err
	}
	if h.Get("Authorization") == "" {
		if u, err := url.Parse(public); err != nil || u.User != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" {
			return "", nil, fmt.Errorf("the release of %s has a file without an address: %w", ref.id(), catalog.ErrUnavailable)
		}
		return public, nil, nil
	}
	h.Set("Accept", "application/octet-stream")
	return s.set.api.JoinPath("repos", ref.owner, ref.repo, "releases/assets", strconv.FormatInt(id, 10)).String(), h, nil
}

var (
	sha256OK  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	sumsFiles = regexp.MustCompile(`(?i)^(.*[-_.])?(sha256sums?|checksums?|sha256)([-_.].*)?$`)
	bsdLine   = regexp.MustCompile(`^SHA256 ?\((.+)\) ?= ?([0-9A-Fa-f]{64})$`)
)

// checksum finds the digest of an asset in the checksum files of its release. Empty: not found.
func (s *source) checksum(ctx context.Context, ref reference, a asset, all []asset) (hexDigest, from string, err error) {
	for _, own := range []bool{true, false} { // the asset's own file first
		for _, c := range all {
			if own != slices.Contains([]string{a.Name + ".sha256", a.Name + ".sha256sum"}, c.Name) || !own && !sumsFiles.MatchString(c.Name) || c.Size > origin.MaxReplyBytes {
				continue
			}
			address, h, err := s.where(ref, c.ID, c.URL)
			if err != nil {
				return "", "", err
			}
			reply, err := s.client.Get(ctx, address, h)
			if err != nil {
				return "", "", s.explain(ref, h, err)
			}
			if d := findSum(string(reply.Body), a.Name, own); d != "" {
				return d, c.Name, nil
			}
		}
	}
	return "", "", nil
}

// findSum finds the SHA-256 of a file in the output of sha256sum, GNU or BSD style. With alone, a
// digest without a name counts as the file's.
func findSum(text, name string, alone bool) string {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if m := bsdLine.FindStringSubmatch(line); m != nil && m[1] == name {
			return strings.ToLower(m[2])
		}
		sum, file, named := strings.Cut(line, " ")
		file = strings.TrimPrefix(strings.TrimPrefix(strings.TrimLeft(file, " "), "*"), "./")
		if sum = strings.ToLower(sum); sha256OK.MatchString(sum) && (file == name || alone && !named) {
			return sum
		}
	}
	return ""
}
