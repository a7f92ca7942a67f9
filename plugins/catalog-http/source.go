package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
)

const searchLimit = 100

// source offers files at web addresses.
type source struct {
	version string
	environ []string
	backoff time.Duration // 0: origin's default
	now     func() time.Time

	mu      sync.Mutex // held while Configure sets the fields, which are read-only afterwards
	client  *origin.Client
	indexes []*index
	auths   []auth
}

// auth is a token for one origin.
type auth struct {
	Origin    string `json:"origin"`
	Token     string `json:"token"`
	TokenFile string `json:"token_file"`

	url *url.URL
}

var _ catalog.Source = (*source)(nil)

func newSource(version string, environ []string) *source {
	return &source{version: version, environ: environ, now: time.Now}
}

// Info describes the source.
func (s *source) Info(context.Context) (sdk.Info, error) {
	return sdk.Info{
		Name: "http", Kind: sdk.KindCatalog, Version: s.version, Summary: "Models and engines at addresses of the web, and those that an index document lists.",
		Capabilities: []string{catalog.CapabilityURL},
	}, nil
}

// Schema returns the settings: index documents and tokens.
func (s *source) Schema(context.Context) (sdk.Schema, error) {
	empty := json.RawMessage(`""`)
	return sdk.Schema{
		Attributes: []sdk.Attribute{{
			Name: "index", Type: "list(string)", Default: json.RawMessage(`[]`),
			Doc: "Addresses of index documents: JSON lists of models with name, url, sha256, size, license, summary, and files instead of url for models of several files. Their names can be searched and used.",
		}},
		Blocks: []sdk.Block{{
			Name: "auth", Repeated: true, Doc: "A token for one origin. It is sent only there, and not to hosts that it redirects to.",
			Schema: sdk.Schema{Attributes: []sdk.Attribute{
				{Name: "origin", Type: "string", Required: true, Doc: "Scheme, host and port, such as https://models.example."},
				{Name: "token", Type: "string", Default: empty, Sensitive: true, Doc: "Sent as Authorization: Bearer. Better in a file: see token_file."},
				{Name: "token_file", Type: "string", Default: empty, Doc: "Path of a file that holds the token."},
			}},
		}},
	}, nil
}

// Configure reads and checks the settings.
func (s *source) Configure(_ context.Context, config sdk.Config) (sdk.Diagnostics, error) {
	var v struct {
		Index []string `json:"index"`
		Auth  []auth   `json:"auth"`
	}
	if len(config.JSON) > 0 {
		if err := json.Unmarshal(config.JSON, &v); err != nil {
			return nil, fmt.Errorf("config: %w", err)
		}
	}
	var d sdk.Diagnostics
	complain := func(summary, detail string, path ...any) {
		d = append(d, sdk.Diagnostic{Summary: summary, Detail: detail, Path: path})
	}
	var indexes []*index
	for i, text := range v.Index {
		l, err := parseLink(text)
		if err != nil || l.digest != "" {
			complain("Unusable address", "An index document is written like https://models.example/index.json.", "index", i)
			continue
		}
		indexes = append(indexes, &index{url: l.url})
	}
	for i, a := range v.Auth {
		l, err := parseLink(a.Origin)
		if err != nil || l.digest != "" || strings.Trim(l.url.Path, "/") != "" || l.url.RawQuery != "" {
			complain("Unusable origin", "An origin is written like https://models.example, without a path.", "auth", i, "origin")
			continue
		}
		v.Auth[i].url = l.url
		if a.TokenFile != "" && !filepath.IsAbs(a.TokenFile) {
			complain("Not a whole path", fmt.Sprintf("%q is relative to nothing. Write the file's whole path, without ~.", a.TokenFile), "auth", i, "token_file")
			continue
		}
		if token, err := a.bearer(); err != nil || token == "" {
			complain("Unusable token", "Set token, or token_file to a file that can be read and holds one line.", "auth", i)
		}
	}
	prefixes, err := origin.ParsePrefixes(config.AllowAddresses)
	if err != nil {
		return nil, err
	}
	client, err := origin.New(origin.Options{Allow: prefixes, Environ: s.environ, UserAgent: "rbee-catalog-http/" + s.version, Backoff: s.backoff})
	if err != nil {
		complain("Unusable network settings", fmt.Sprintf("%v. %s", err, sdk.HintOf(err)))
	}
	if d.HasErrors() {
		return d, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		s.client.Close()
	}
	s.client, s.indexes, s.auths = client, indexes, v.Auth
	return d, nil
}

// bearer returns the token, read anew each time so that a renewed one takes effect.
func (a auth) bearer() (string, error) {
	token := a.Token
	if token == "" && a.TokenFile != "" {
		b, err := os.ReadFile(a.TokenFile)
		if err != nil {
			return "", fmt.Errorf("the token file for %s cannot be read: %w: %w", a.Origin, err, catalog.ErrUnauthenticated)
		}
		token = string(b)
	}
	token = strings.TrimSpace(token)
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("the token for %s is not one line of letters and digits: %w", a.Origin, catalog.ErrInvalid)
	}
	return token, nil
}

func (s *source) ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		return errors.New("the catalog source http is not configured")
	}
	return nil
}

// header returns the headers of requests to u.
func (s *source) header(u *url.URL) (http.Header, error) {
	for _, a := range s.auths {
		if origin.SameOrigin(a.url, u) {
			token, err := a.bearer()
			if err != nil {
				return nil, err
			}
			return http.Header{"Authorization": {"Bearer " + token}}, nil
		}
	}
	return http.Header{}, nil
}

// explain adds what to do about a refusal.
func (s *source) explain(u *url.URL, err error) error {
	if e, ok := errors.AsType[*origin.StatusError](err); ok && (e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden) {
		return sdk.WithHint(err, `If it wants a token, write auth { origin = "%s://%s", token_file = "…" } into the config of catalog "http".`, u.Scheme, u.Host)
	}
	return err
}

// Search searches the index documents.
func (s *source) Search(ctx context.Context, q catalog.Query, emit func(catalog.Item) error) error {
	if err := s.ready(); err != nil {
		return err
	}
	text := strings.ToLower(strings.TrimSpace(q.Text))
	limit := searchLimit
	if q.Limit > 0 {
		limit = min(q.Limit, limit)
	}
	n := 0
	var failed error
	for _, x := range s.indexes {
		entries, err := s.list(ctx, x)
		if err != nil {
			failed = err
			continue
		}
		for _, e := range entries {
			if q.Kind != "" && q.Kind != e.kind() || !strings.Contains(strings.ToLower(e.Name+" "+e.Summary), text) {
				continue
			}
			if n++; n > limit {
				return nil
			}
			var size int64
			for _, b := range e.sizes {
				size += b
			}
			summary, _, _ := strings.Cut(e.Summary, "\n")
			if err := emit(catalog.Item{Ref: e.Name, Kind: e.kind(), Name: e.Name, Summary: summary, SizeBytes: size, License: e.License}); err != nil {
				return err
			}
		}
	}
	if n == 0 {
		return failed
	}
	return nil
}

func (l listed) kind() catalog.ItemKind {
	if l.Kind != "" {
		return catalog.ItemKind(l.Kind)
	}
	name, _ := l.links[0].file() // checked when the index was read
	return kindOf(name)
}

// Resolve asks the server, or the index documents, which files a reference means.
func (s *source) Resolve(ctx context.Context, ref string) (catalog.Manifest, error) {
	if err := s.ready(); err != nil {
		return catalog.Manifest{}, err
	}
	if isURL(ref) {
		return s.resolveURL(ctx, ref)
	}
	return s.resolveName(ctx, ref)
}

func (s *source) resolveURL(ctx context.Context, ref string) (catalog.Manifest, error) {
	l, err := parseLink(ref)
	if err != nil {
		return catalog.Manifest{}, err
	}
	file, err := l.file()
	if err != nil {
		return catalog.Manifest{}, err
	}
	links, err := l.parts()
	if err != nil {
		return catalog.Manifest{}, err
	}
	if links == nil {
		links = []link{l}
	}
	m := catalog.Manifest{Name: localName(file), Kind: kindOf(file)}
	if m.Kind == catalog.KindModel { // two hosts may have files of the same name
		m.Name = l.url.Host + path.Join("/", path.Dir(l.url.Path), m.Name)
	}
	unchecked := false
	for i := range links {
		size, said, err := s.look(ctx, links[i].url)
		if err != nil {
			return catalog.Manifest{}, err
		}
		if links[i].digest == "" {
			if links[i].digest = said; said != "" {
				m.Notes = append(m.Notes, fmt.Sprintf("%s says that the digest of %s is %s", l.url.Host, mustFile(links[i]), said))
			}
		}
		unchecked = unchecked || links[i].digest == ""
		f, err := s.file(links[i], size)
		if err != nil {
			return catalog.Manifest{}, err
		}
		m.Files = append(m.Files, f)
	}
	if unchecked {
		m.Notes = append(m.Notes, fmt.Sprintf("no digest of %s is known, so what comes now is trusted; with #sha256=… behind the address it is checked", file))
	}
	m.Ref = links[0].String()
	if len(links) > 1 {
		m.Ref = links[0].url.String()
	}
	for i := range m.Files {
		m.Files[i].Ref = m.Ref
	}
	return m, nil
}

func mustFile(l link) string {
	name, _ := l.file() // part of a checked name
	return name
}

// look returns the size of the file at an address, and its digest if the server sends one.
func (s *source) look(ctx context.Context, u *url.URL) (sizeBytes int64, digest string, err error) {
	h, err := s.header(u)
	if err != nil {
		return 0, "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, u.String(), nil)
	if err != nil {
		return 0, "", malformed("the address of %s cannot be used", u.Host)
	}
	req.Header = h
	req.Header.Set("Want-Repr-Digest", "sha-256=10")
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	_ = resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusMethodNotAllowed || resp.StatusCode == http.StatusNotImplemented:
		return 0, "", nil // unknown; the transfer will tell
	case resp.StatusCode/100 != 2:
		return 0, "", s.explain(u, s.client.Explain(ctx, u, origin.NewStatusError(resp, nil, s.now())))
	}
	return max(resp.ContentLength, 0), digestOf(resp.Header), nil
}

// file returns a file of a manifest.
func (s *source) file(l link, size int64) (catalog.File, error) {
	name, err := l.file()
	if err != nil {
		return catalog.File{}, err
	}
	h, err := s.header(l.url)
	if err != nil {
		return catalog.File{}, err
	}
	f := catalog.File{Path: name, SizeBytes: size, Digest: l.digest, Locator: l.url.String(), URL: l.url.String()}
	if a := h.Get("Authorization"); a != "" {
		f.Header = map[string]string{"Authorization": a}
	}
	return f, nil
}

// resolveName finds a name in the index documents. NAME@DIGEST matches as long as its first file's
// digest starts with that digest.
func (s *source) resolveName(ctx context.Context, ref string) (catalog.Manifest, error) {
	name, want, pinned := strings.Cut(ref, "@")
	if !nameOK.MatchString(name) || pinned && want == "" {
		return catalog.Manifest{}, malformed("%.100q is neither an address nor a name", ref)
	}
	if len(s.indexes) == 0 {
		return catalog.Manifest{}, sdk.WithHint(fmt.Errorf("there is no index document that could have %s: %w", name, catalog.ErrNotFound), `Name the whole address, or set index in the config of catalog "http".`)
	}
	var failed error
	var names []string
	for _, x := range s.indexes {
		entries, err := s.list(ctx, x)
		if err != nil {
			failed = err
			continue
		}
		for _, e := range entries {
			names = append(names, e.Name)
		}
		i := slices.IndexFunc(entries, func(e listed) bool { return e.Name == name })
		if i < 0 {
			continue
		}
		return s.fromIndex(entries[i], want)
	}
	if failed != nil {
		return catalog.Manifest{}, failed
	}
	return catalog.Manifest{}, sdk.WithHint(fmt.Errorf("no index document has %s: %w", name, catalog.ErrNotFound), "There are: %s.", strings.Join(names[:min(len(names), 12)], ", "))
}

func (s *source) fromIndex(e listed, want string) (catalog.Manifest, error) {
	m := catalog.Manifest{Ref: e.Name, Name: e.Name, Kind: e.kind(), Version: e.Version, License: e.License}
	if _, sum, ok := strings.Cut(e.links[0].digest, ":"); ok {
		short := sum[:16]
		if want != "" && want != short {
			return catalog.Manifest{}, sdk.WithHint(fmt.Errorf("the index now has another %s: %w", e.Name, catalog.ErrNotFound), "Ask for %s without a digest.", e.Name)
		}
		m.Ref += "@" + short
	} else if want != "" {
		return catalog.Manifest{}, fmt.Errorf("the index has no digest of %s: %w", e.Name, catalog.ErrNotFound)
	}
	for i, l := range e.links {
		f, err := s.file(l, e.sizes[i])
		if err != nil {
			return catalog.Manifest{}, err
		}
		f.Ref = m.Ref
		if f.Digest == "" {
			m.Notes = append(m.Notes, fmt.Sprintf("the index has no digest of %s, so what comes now is trusted", f.Path))
		}
		m.Files = append(m.Files, f)
	}
	return m, nil
}

// Fetch writes a file from offset on.
func (s *source) Fetch(ctx context.Context, f catalog.File, offset int64, w io.Writer) error {
	if err := s.ready(); err != nil {
		return err
	}
	l, err := parseLink(f.Locator)
	if err != nil {
		return err
	}
	h, err := s.header(l.url)
	if err != nil {
		return err
	}
	return s.explain(l.url, s.client.Fetch(ctx, l.url.String(), h, f.SizeBytes, offset, w))
}
