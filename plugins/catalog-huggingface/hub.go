package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
)

// hubModel is the Hub's description of a repository.
type hubModel struct {
	ID       string          `json:"id"`
	SHA      string          `json:"sha"`
	Gated    json.RawMessage `json:"gated"` // false, "auto" or "manual"
	Tags     []string        `json:"tags"`
	CardData struct {
		License     json.RawMessage `json:"license"` // text, or a list of it
		LicenseName string          `json:"license_name"`
	} `json:"cardData"`
	Downloads int64 `json:"downloads"`
	Likes     int64 `json:"likes"`
	Siblings  []struct {
		Name string `json:"rfilename"`
		Size int64  `json:"size"`
		LFS  *struct {
			SHA256 string `json:"sha256"`
			Size   int64  `json:"size"`
		} `json:"lfs"`
	} `json:"siblings"`
}

// license returns the card's licence.
func (m hubModel) license() string {
	var one string
	var many []string
	if json.Unmarshal(m.CardData.License, &one) != nil && json.Unmarshal(m.CardData.License, &many) == nil {
		one = strings.Join(many, ", ")
	}
	if one == "" {
		for _, tag := range m.Tags {
			if l, ok := strings.CutPrefix(tag, "license:"); ok {
				one = l
			}
		}
	}
	if one == "other" && m.CardData.LicenseName != "" {
		one = m.CardData.LicenseName
	}
	return one
}

func (m hubModel) gated() bool {
	var kind string
	return json.Unmarshal(m.Gated, &kind) == nil && kind != ""
}

func (m hubModel) files() []hubFile {
	var out []hubFile
	for _, s := range m.Siblings {
		f := hubFile{path: s.Name, size: max(s.Size, 0)}
		if s.LFS != nil {
			f.size = max(s.LFS.Size, 0)
			if sha256OK.MatchString(s.LFS.SHA256) {
				f.sha256 = s.LFS.SHA256
			}
		}
		out = append(out, f)
	}
	return out
}

// header returns the headers of requests to the Hub.
func (s *source) header() (http.Header, error) {
	token, err := s.set.bearer()
	if err != nil || token == "" {
		return http.Header{}, err
	}
	return http.Header{"Authorization": {"Bearer " + token}}, nil
}

// model requests a repository's description at a revision.
func (s *source) model(ctx context.Context, ref reference) (hubModel, error) {
	h, err := s.header()
	if err != nil {
		return hubModel{}, err
	}
	u := s.set.endpoint.JoinPath("api/models", ref.org, ref.repo, "revision", url.PathEscape(ref.rev()))
	u.RawQuery = "blobs=true"
	reply, err := s.client.Get(ctx, u.String(), h)
	if err != nil {
		return hubModel{}, s.explain(ref, h, err)
	}
	var m hubModel
	if err := json.Unmarshal(reply.Body, &m); err != nil || !commitOK.MatchString(m.SHA) {
		return hubModel{}, sdk.WithHint(fmt.Errorf("%s does not answer as the Hub does: %w", s.set.endpoint.Host, catalog.ErrUnavailable), "Check endpoint in the block catalog \"huggingface\", or HF_ENDPOINT.")
	}
	if org, repo, ok := strings.Cut(m.ID, "/"); !ok || !nameOK.MatchString(org) || !nameOK.MatchString(repo) {
		m.ID = ref.id()
	}
	return m, nil
}

// address returns the address of a file at a commit.
func (s *source) address(id, commit, file string) string {
	parts := []string{id, "resolve", commit}
	for part := range strings.SplitSeq(file, "/") {
		parts = append(parts, url.PathEscape(part))
	}
	return s.set.endpoint.JoinPath(parts...).String()
}

// look requests a file's headers without following redirects. It reports whether the file may be
// read, and its digest and size.
func (s *source) look(ctx context.Context, ref reference, commit string, f *hubFile) error {
	h, err := s.header()
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, s.address(ref.id(), commit, f.path), nil)
	if err != nil {
		return err
	}
	req.Header = h
	stay := *s.client.HTTP()
	stay.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := stay.Do(req)
	if err != nil {
		return s.client.Explain(ctx, req.URL, err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		return s.explain(ref, h, origin.NewStatusError(resp, nil, s.now()))
	}
	if tag := strings.Trim(resp.Header.Get("X-Linked-Etag"), `"`); f.sha256 == "" && sha256OK.MatchString(tag) {
		f.sha256 = tag
	}
	return nil
}

// explain explains the Hub's refusal.
func (s *source) explain(ref reference, h http.Header, err error) error {
	e, ok := errors.AsType[*origin.StatusError](err)
	if !ok {
		return err
	}
	page := s.set.endpoint.JoinPath(ref.id()).String()
	const set = `Set token_file in the block catalog "huggingface", or HF_TOKEN in the agent's environment`
	token := h.Get("Authorization") != ""
	switch code := e.Header.Get("X-Error-Code"); {
	case code == "GatedRepo" && !token:
		return sdk.WithHint(fmt.Errorf("%s is gated: the Hub gives it only to those who have accepted its licence: %w", ref.id(), catalog.ErrUnauthenticated),
			"Accept the licence at %s, make a token that may read at %s, and let rbee have it. %s.", page, s.set.endpoint.JoinPath("settings/tokens"), set)
	case code == "GatedRepo":
		return sdk.WithHint(fmt.Errorf("%s is gated, and the account of the token that rbee has is not let in: %w", ref.id(), catalog.ErrForbidden),
			"Accept the licence at %s with that account, and see that the token may read gated repositories.", page)
	case code == "RevisionNotFound":
		return sdk.WithHint(fmt.Errorf("%s has no revision %s: %w", ref.id(), ref.rev(), catalog.ErrNotFound), "Its branches and tags are at %s/tree/main.", page)
	case code == "EntryNotFound":
		return fmt.Errorf("%s has no such file: %w", ref, catalog.ErrNotFound)
	case (code == "RepoNotFound" || e.Status == http.StatusNotFound) && !token:
		return sdk.WithHint(fmt.Errorf("there is no repository %s: %w", ref.id(), catalog.ErrNotFound), "Check the spelling. If it is private, rbee needs a token. %s.", set)
	case code == "RepoNotFound" || e.Status == http.StatusNotFound:
		return sdk.WithHint(fmt.Errorf("there is no repository %s that the token may see: %w", ref.id(), catalog.ErrNotFound), "Check the spelling, and what the token may read.")
	case e.Status == http.StatusUnauthorized && token:
		return sdk.WithHint(fmt.Errorf("the Hub does not accept the token that rbee has: %w", catalog.ErrUnauthenticated), "It may have been revoked. %s.", set)
	case e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden:
		return sdk.WithHint(err, "%s.", set)
	case e.Status == http.StatusTooManyRequests && !token:
		return sdk.WithHint(err, "%s With a token the Hub allows more requests. %s.", sdk.HintOf(err), set)
	}
	return err
}

var nextLink = regexp.MustCompile(`<([^>]*)>\s*;[^,]*\brel="?next"?`)

// next returns the address of the next page of a list, which must also belong to the Hub; empty:
// none.
func (s *source) next(r origin.Reply) string {
	for _, link := range r.Header.Values("Link") {
		if m := nextLink.FindStringSubmatch(link); m != nil {
			u, err := r.URL.Parse(m[1])
			if err == nil && origin.SameOrigin(u, s.set.endpoint) {
				return u.String()
			}
		}
	}
	return ""
}
