package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
)

const (
	publicAPI   = "https://api.github.com"
	searchLimit = 20
	maxPages    = 10
)

// source offers the files of releases.
type source struct {
	version      string
	environ      []string
	backoff      time.Duration // 0: origin's default
	now          func() time.Time
	goos, goarch string

	set    settings // like client, set by Configure and then read-only
	client *origin.Client

	mu      sync.Mutex // guards replies, and is held while Configure sets the fields above
	replies map[string]remembered
}

type settings struct {
	api       *url.URL
	backend   string
	token     string
	tokenFile string
	envToken  string
}

var _ catalog.Source = (*source)(nil)

func newSource(version string, environ []string) *source {
	return &source{version: version, environ: environ, now: time.Now, goos: runtime.GOOS, goarch: runtime.GOARCH, replies: map[string]remembered{}}
}

// Info describes the source.
func (s *source) Info(context.Context) (sdk.Info, error) {
	return sdk.Info{
		Name: "github", Kind: sdk.KindCatalog, Version: s.version, Summary: "Engines and models among the files of GitHub's releases.",
		Capabilities: []string{catalog.CapabilityURL},
	}, nil
}

// Schema returns the settings: the API's address and a token.
func (s *source) Schema(context.Context) (sdk.Schema, error) {
	empty := json.RawMessage(`""`)
	return sdk.Schema{Attributes: []sdk.Attribute{
		{Name: "api", Type: "string", Default: empty, Doc: "Address of the API, such as https://github.example/api/v3 for a private server. Empty: https://api.github.com."},
		{Name: "backend", Type: "string", Default: json.RawMessage(`"cpu"`), Doc: "Backend of the file to choose when a reference names none: cpu, cuda, vulkan, metal, rocm and others."},
		{Name: "token", Type: "string", Default: empty, Sensitive: true, Doc: "A token that may read. Better in a file: see token_file."},
		{Name: "token_file", Type: "string", Default: empty, Doc: "Path of a file that holds the token. Empty: GITHUB_TOKEN or GH_TOKEN, for GitHub itself and not for another api."},
	}}, nil
}

// Configure reads and checks the settings.
func (s *source) Configure(_ context.Context, config sdk.Config) (sdk.Diagnostics, error) {
	v := struct {
		API       string `json:"api"`
		Backend   string `json:"backend"`
		Token     string `json:"token"`
		TokenFile string `json:"token_file"`
	}{Backend: "cpu"}
	if len(config.JSON) > 0 {
		if err := json.Unmarshal(config.JSON, &v); err != nil {
			return nil, fmt.Errorf("config: %w", err)
		}
	}
	complain := func(summary, detail string, path ...any) (sdk.Diagnostics, error) {
		return sdk.Diagnostics{{Summary: summary, Detail: detail, Path: path}}, nil
	}
	set := settings{backend: v.Backend, token: v.Token, tokenFile: v.TokenFile}
	u, err := url.Parse(strings.TrimRight(cmp.Or(v.API, publicAPI), "/"))
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" {
		return complain("Unusable address", "The API's address is written like https://github.example/api/v3.", "api")
	}
	set.api = u
	if !backendOK.MatchString(v.Backend) {
		return complain("No backend", fmt.Sprintf("%q is none: cpu, cuda, vulkan, metal and rocm are.", v.Backend), "backend")
	}
	if v.TokenFile != "" && !filepath.IsAbs(v.TokenFile) {
		return complain("Not a whole path", fmt.Sprintf("%q is relative to nothing. Write the file's whole path, without ~.", v.TokenFile), "token_file")
	}
	if origin.SameOrigin(u, &url.URL{Scheme: "https", Host: "api.github.com"}) {
		for _, name := range []string{"GITHUB_TOKEN", "GH_TOKEN"} {
			for _, entry := range s.environ {
				if token, ok := strings.CutPrefix(entry, name+"="); ok && set.envToken == "" {
					set.envToken = strings.TrimSpace(token)
				}
			}
		}
	}
	if _, err := set.bearer(); err != nil {
		return complain("Unusable token", fmt.Sprintf("%v. Set token, or token_file to a file that can be read and holds one line.", err), map[bool]any{true: "token_file", false: "token"}[v.TokenFile != ""])
	}
	prefixes, err := origin.ParsePrefixes(config.AllowAddresses)
	if err != nil {
		return nil, err
	}
	client, err := origin.New(origin.Options{Allow: prefixes, Environ: s.environ, UserAgent: "rbee-catalog-github/" + s.version, Backoff: s.backoff})
	if err != nil {
		return complain("Unusable network settings", fmt.Sprintf("%v. %s", err, sdk.HintOf(err)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		s.client.Close()
	}
	s.set, s.client = set, client
	return nil, nil
}

// bearer returns the token, read anew each time so that a renewed one takes effect. Empty: none.
func (s *settings) bearer() (string, error) {
	token := s.token
	if token == "" && s.tokenFile != "" {
		b, err := os.ReadFile(s.tokenFile)
		if err != nil {
			return "", fmt.Errorf("the token file cannot be read: %w: %w", err, catalog.ErrUnauthenticated)
		}
		token = string(b)
	}
	token = strings.TrimSpace(cmp.Or(token, s.envToken))
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("the token for GitHub is not one line of letters and digits: %w", catalog.ErrInvalid)
	}
	return token, nil
}

func (s *source) ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		return errors.New("the catalog source github is not configured")
	}
	return nil
}

// Search lists the files of a repository's releases, newest first. For any text but OWNER/REPO it
// returns nothing without a request: GitHub has its own search.
func (s *source) Search(ctx context.Context, q catalog.Query, emit func(catalog.Item) error) error {
	if err := s.ready(); err != nil {
		return err
	}
	ref, err := parseRef(strings.TrimSpace(q.Text))
	if err != nil {
		return nil //nolint:nilerr // it is no repository
	}
	limit := searchLimit
	if q.Limit > 0 {
		limit = min(q.Limit, 200)
	}
	address := s.set.api.JoinPath("repos", ref.owner, ref.repo, "releases")
	address.RawQuery = "per_page=30"
	n := 0
	for page, at := 0, address.String(); at != "" && page < maxPages; page++ {
		var found []release
		if at, err = s.get(ctx, ref, at, &found); err != nil {
			if errors.Is(err, catalog.ErrNotFound) {
				return nil
			}
			return err
		}
		for _, r := range found {
			for _, a := range r.Assets {
				kind := kindOf(a.Name)
				if r.Draft || kind == "" || q.Kind != "" && q.Kind != kind || !tagOK.MatchString(r.Tag) || !assetOK.MatchString(a.Name) {
					continue
				}
				exact := reference{owner: ref.owner, repo: ref.repo, tag: r.Tag, asset: a.Name}.String()
				if err := emit(catalog.Item{Ref: exact, Kind: kind, Name: exact, Summary: "release " + r.Tag, SizeBytes: max(a.Size, 0)}); err != nil {
					return err
				}
				if n++; n == limit {
					return nil
				}
			}
		}
	}
	return nil
}

// Resolve asks GitHub which file a reference means.
func (s *source) Resolve(ctx context.Context, text string) (catalog.Manifest, error) {
	if err := s.ready(); err != nil {
		return catalog.Manifest{}, err
	}
	ref, err := parseRef(text)
	if err != nil {
		return catalog.Manifest{}, err
	}
	r, err := s.release(ctx, ref)
	if err != nil {
		return catalog.Manifest{}, err
	}
	ref.tag = r.Tag
	a, notes, err := s.choose(ref, r.Assets)
	if err != nil {
		return catalog.Manifest{}, err
	}
	digest := strings.ToLower(a.Digest)
	if sum, ok := strings.CutPrefix(digest, "sha256:"); !ok || !sha256OK.MatchString(sum) {
		sum, from, err := s.checksum(ctx, ref, a, r.Assets)
		if err != nil {
			return catalog.Manifest{}, err
		}
		if digest = ""; sum != "" {
			digest = "sha256:" + sum
			notes = append(notes, fmt.Sprintf("the digest of %s is out of %s of the same release", a.Name, from))
		} else {
			notes = append(notes, fmt.Sprintf("neither GitHub nor the release has a digest of %s, so what comes now is trusted", a.Name))
		}
	}
	exact := reference{owner: ref.owner, repo: ref.repo, tag: r.Tag, asset: a.Name}
	address, h, err := s.where(exact, a.ID, a.URL)
	if err != nil {
		return catalog.Manifest{}, err
	}
	f := catalog.File{Ref: exact.String(), Path: a.Name, SizeBytes: max(a.Size, 0), Digest: digest, Locator: fmt.Sprintf("%d %s", a.ID, a.URL), URL: address}
	for name := range h {
		if f.Header == nil {
			f.Header = map[string]string{}
		}
		f.Header[name] = h.Get(name)
	}
	name := localName(a.Name)
	if kindOf(a.Name) == catalog.KindModel { // two repositories may have files of the same name
		name = "github.com/" + exact.id() + "/" + name + ":" + r.Tag
	}
	return catalog.Manifest{Ref: exact.String(), Name: name, Kind: kindOf(a.Name), Version: r.Tag, Files: []catalog.File{f}, Notes: notes}, nil
}

// localName returns the local name of a file.
func localName(file string) string {
	for _, ending := range append(archives(), ".gguf") {
		if n := len(file) - len(ending); n > 0 && strings.EqualFold(file[n:], ending) {
			return file[:n]
		}
	}
	return file
}

var locatorOK = regexp.MustCompile(`^([0-9]{1,18}) (https?://\S+)$`)

// Fetch writes a file from offset on.
func (s *source) Fetch(ctx context.Context, f catalog.File, offset int64, w io.Writer) error {
	if err := s.ready(); err != nil {
		return err
	}
	ref, err := parseRef(f.Ref)
	if err != nil {
		return err
	}
	m := locatorOK.FindStringSubmatch(f.Locator)
	if m == nil {
		return fmt.Errorf("%.100q is not a file of a release: %w", f.Path, catalog.ErrInvalid)
	}
	id, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return fmt.Errorf("%.100q is not a file of a release: %w", f.Path, catalog.ErrInvalid)
	}
	address, h, err := s.where(ref, id, m[2])
	if err != nil {
		return err
	}
	return s.explain(ref, h, s.client.Fetch(ctx, address, h, f.SizeBytes, offset, w))
}
