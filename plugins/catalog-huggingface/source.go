package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
)

const (
	searchLimit = 20
	maxPages    = 10
)

// source offers the models of a Hub.
type source struct {
	version string
	environ environ
	backoff time.Duration // 0: origin's default
	now     func() time.Time

	mu     sync.Mutex // held while Configure sets the fields, which are read-only afterwards
	set    settings
	client *origin.Client
}

var _ catalog.Source = (*source)(nil)

func newSource(version string, env []string) *source {
	return &source{version: version, environ: env, now: time.Now}
}

// Info describes the source.
func (s *source) Info(context.Context) (sdk.Info, error) {
	return sdk.Info{
		Name: "huggingface", Kind: sdk.KindCatalog, Version: s.version, Summary: "GGUF models from the Hugging Face Hub, and from the cache of its tools.",
		Capabilities: []string{catalog.CapabilityURL},
	}, nil
}

// Schema returns the settings, including those that the environment of Hugging Face's tools also
// sets.
func (s *source) Schema(context.Context) (sdk.Schema, error) {
	empty := json.RawMessage(`""`)
	return sdk.Schema{Attributes: []sdk.Attribute{
		{Name: "endpoint", Type: "string", Default: empty, Doc: "Address of the Hub. Empty: HF_ENDPOINT, or https://huggingface.co."},
		{Name: "token", Type: "string", Default: empty, Sensitive: true, Doc: "A token that may read. Better in a file: see token_file."},
		{Name: "token_file", Type: "string", Default: empty, Doc: "Path of a file that holds the token. Empty: HF_TOKEN, or the file where \"hf auth login\" keeps it."},
		{Name: "cache", Type: "bool", Default: json.RawMessage(`true`), Doc: "Whether to use files from the cache of Hugging Face's tools (HF_HUB_CACHE, HF_HOME, ~/.cache/huggingface/hub)."},
	}}, nil
}

// Configure reads and checks the settings.
func (s *source) Configure(_ context.Context, config sdk.Config) (sdk.Diagnostics, error) {
	v := struct {
		Endpoint  string `json:"endpoint"`
		Token     string `json:"token"`
		TokenFile string `json:"token_file"`
		Cache     bool   `json:"cache"`
	}{Cache: true}
	if len(config.JSON) > 0 {
		if err := json.Unmarshal(config.JSON, &v); err != nil {
			return nil, fmt.Errorf("config: %w", err)
		}
	}
	var d sdk.Diagnostics
	complain := func(sev sdk.Severity, summary, detail string, path ...any) {
		d = append(d, sdk.Diagnostic{Severity: sev, Summary: summary, Detail: detail, Path: path})
	}
	set := fromEnviron(s.environ)
	set.token, set.tokenFile = v.Token, v.TokenFile
	if !v.Cache {
		set.cache = ""
	}
	var err error
	if set.endpoint, err = parseEndpoint(cmp.Or(v.Endpoint, s.environ.get("HF_ENDPOINT"), publicHub)); err != nil {
		complain(sdk.Error, "Unusable endpoint", fmt.Sprintf("%v. It is written like %s, in endpoint or HF_ENDPOINT.", err, publicHub), "endpoint")
		return d, nil
	}
	if v.TokenFile != "" && !filepath.IsAbs(v.TokenFile) {
		complain(sdk.Error, "Not a whole path", fmt.Sprintf("%q is relative to nothing. Write the file's whole path, without ~.", v.TokenFile), "token_file")
		return d, nil
	}
	token, err := set.bearer()
	if err != nil {
		at := "token"
		if v.TokenFile != "" {
			at = "token_file"
		}
		complain(sdk.Error, "Unusable token", fmt.Sprintf("%v. %s", err, sdk.HintOf(err)), at)
		return d, nil
	}
	if token != "" && set.endpoint.Scheme == "http" {
		complain(sdk.Warning, "The token goes over the network in the clear", fmt.Sprintf("%s is not encrypted, so everybody on the way can read the token. Use https.", set.endpoint.Host), "endpoint")
	}
	prefixes, err := origin.ParsePrefixes(config.AllowAddresses)
	if err != nil {
		return nil, err
	}
	client, err := origin.New(origin.Options{Allow: prefixes, Environ: s.environ, UserAgent: "rbee-catalog-huggingface/" + s.version, Backoff: s.backoff})
	if err != nil {
		complain(sdk.Error, "Unusable network settings", fmt.Sprintf("%v. %s", err, sdk.HintOf(err)))
		return d, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		s.client.Close()
	}
	s.set, s.client = set, client
	return d, nil
}

func (s *source) ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		return errors.New("the catalog source huggingface is not configured")
	}
	return nil
}

// Search asks the Hub for repositories with GGUF models, most downloaded first.
func (s *source) Search(ctx context.Context, q catalog.Query, emit func(catalog.Item) error) error {
	text := strings.TrimSpace(q.Text)
	if q.Kind == catalog.KindEngine {
		return nil
	}
	if err := s.ready(); err != nil {
		return err
	}
	if s.set.offline || q.Exact && !strings.Contains(text, "/") {
		return nil // every reference here has a slash
	}
	limit := searchLimit
	if q.Limit > 0 {
		limit = min(q.Limit, 100)
	}
	h, err := s.header()
	if err != nil {
		return err
	}
	u := s.set.endpoint.JoinPath("api/models")
	u.RawQuery = url.Values{
		"search": {text}, "filter": {"gguf"}, "sort": {"downloads"}, "direction": {"-1"}, "limit": {fmt.Sprint(limit)},
	}.Encode()
	n := 0
	for page, address := 0, u.String(); address != "" && page < maxPages; page++ {
		reply, err := s.client.Get(ctx, address, h)
		if err != nil {
			return s.explainSearch(h, err)
		}
		var found []hubModel
		if err := json.Unmarshal(reply.Body, &found); err != nil {
			return fmt.Errorf("%s does not answer a search as the Hub does: %w", s.set.endpoint.Host, catalog.ErrUnavailable)
		}
		for _, m := range found {
			ref, err := parseRef(m.ID)
			if err != nil || ref.quant != "" || ref.file != "" {
				continue
			}
			if err := emit(catalog.Item{
				Ref: ref.id(), Kind: catalog.KindModel, Name: ref.id(), License: m.license(), Summary: fmt.Sprintf("%d downloads, %d likes", m.Downloads, m.Likes),
			}); err != nil {
				return err
			}
			if n++; n == limit {
				return nil
			}
		}
		address = s.next(reply)
	}
	return nil
}

func (s *source) explainSearch(h http.Header, err error) error {
	if e, ok := errors.AsType[*origin.StatusError](err); ok && e.Status == http.StatusUnauthorized && h.Get("Authorization") != "" {
		return s.explain(reference{}, h, err)
	}
	return err
}

// Resolve asks the Hub which files a reference means.
func (s *source) Resolve(ctx context.Context, text string) (catalog.Manifest, error) {
	if err := s.ready(); err != nil {
		return catalog.Manifest{}, err
	}
	ref, err := parseRef(text)
	if err != nil {
		return catalog.Manifest{}, err
	}
	if s.set.offline {
		return s.resolveOffline(ref)
	}
	m, err := s.model(ctx, ref)
	if err != nil {
		return catalog.Manifest{}, err
	}
	all := variants(m.files())
	v, notes, err := choose(ref, all)
	if err != nil {
		return catalog.Manifest{}, err
	}
	ref.org, ref.repo, _ = strings.Cut(m.ID, "/") // its new name, if it was moved
	if c, err := openCached(s.set.cache, ref); err == nil {
		for i, f := range v.files {
			if have, ok := c.stat(m.SHA, f.path); ok && have.size == f.size {
				v.files[i].cached = true
				notes = append(notes, f.path+" is in the Hugging Face cache of this machine and is taken from there")
			}
		}
		c.close()
	}
	for i, f := range v.files {
		if f.cached && f.sha256 != "" || f.sha256 != "" && !(m.gated() && i == 0) {
			continue
		}
		if err := s.look(ctx, ref, m.SHA, &v.files[i]); err != nil {
			return catalog.Manifest{}, err
		}
		if v.files[i].sha256 == "" {
			notes = append(notes, "the Hub publishes no SHA-256 of "+f.path+", so what comes is taken as it is")
		}
	}
	h, err := s.header()
	if err != nil {
		return catalog.Manifest{}, err
	}
	v.named = len(having(all, v.quant)) == 1
	return s.manifest(ref, m.SHA, m.license(), v, notes, h.Get("Authorization")), nil
}

// manifest returns a variant's files, and where the host can fetch them.
func (s *source) manifest(ref reference, commit, license string, v variant, notes []string, authorization string) catalog.Manifest {
	exact := reference{org: ref.org, repo: ref.repo, file: v.files[0].path, revision: commit}
	m := catalog.Manifest{Ref: exact.String(), Name: localName(ref, v), Kind: catalog.KindModel, Version: commit, License: license, Notes: notes}
	for _, f := range v.files {
		file := catalog.File{Ref: exact.String(), Path: f.path, SizeBytes: f.size, Locator: f.path}
		if f.sha256 != "" {
			file.Digest = "sha256:" + f.sha256
		}
		if !f.cached {
			file.URL = s.address(ref.id(), commit, f.path)
			if authorization != "" {
				file.Header = map[string]string{"Authorization": authorization}
			}
		}
		m.Files = append(m.Files, file)
	}
	return m
}

// Fetch writes a file from offset on, from the cache if it has the file.
func (s *source) Fetch(ctx context.Context, f catalog.File, offset int64, w io.Writer) error {
	if err := s.ready(); err != nil {
		return err
	}
	ref, err := parseRef(f.Ref)
	if err != nil {
		return err
	}
	if !commitOK.MatchString(ref.revision) || !fileOK(f.Locator) {
		return fmt.Errorf("%q at %q is not a file of an exact reference: %w", f.Locator, f.Ref, catalog.ErrInvalid)
	}
	if offset < 0 || f.SizeBytes > 0 && offset > f.SizeBytes {
		return fmt.Errorf("%s has %d bytes and cannot be read from %d: %w", f.Path, f.SizeBytes, offset, catalog.ErrInvalid)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if c, err := openCached(s.set.cache, ref); err == nil {
		defer c.close()
		if have, ok := c.stat(ref.revision, f.Locator); ok && (f.SizeBytes == 0 || have.size == f.SizeBytes) {
			return c.copy(ref.revision, f.Locator, offset, w)
		}
	}
	if s.set.offline {
		return fmt.Errorf("%s is no longer in the Hugging Face cache, and HF_HUB_OFFLINE is set: %w", f.Path, catalog.ErrUnavailable)
	}
	h, err := s.header()
	if err != nil {
		return err
	}
	return s.explain(ref, h, s.client.Fetch(ctx, s.address(ref.id(), ref.revision, f.Locator), h, f.SizeBytes, offset, w))
}
