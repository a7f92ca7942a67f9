package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
)

const (
	stallTime    = 30 * time.Second
	firstBackoff = 500 * time.Millisecond
	searchLimit  = 20
)

// source offers packages of npm registries.
type source struct {
	version string
	environ []string
	stall   time.Duration
	backoff time.Duration
	private bool // allow registries on this machine, for tests

	mu     sync.Mutex // guards below
	client *client
}

var _ catalog.Source = (*source)(nil)

func newSource(version string, environ []string) *source {
	return &source{version: version, environ: environ, stall: stallTime, backoff: firstBackoff}
}

// Info describes the source.
func (s *source) Info(context.Context) (sdk.Info, error) {
	return sdk.Info{Name: "npm", Kind: sdk.KindCatalog, Version: s.version, Summary: "Engine libraries from an npm registry, with the settings of npm."}, nil
}

// Schema returns the settings that npm's own do not cover.
func (s *source) Schema(context.Context) (sdk.Schema, error) {
	return sdk.Schema{Attributes: []sdk.Attribute{
		{
			Name: "registry", Type: "string", Default: json.RawMessage(`""`),
			Doc: "Address of the registry. Empty: npm's own setting, from NPM_CONFIG_REGISTRY or an npmrc. Scopes with their own registry keep it.",
		},
		{
			Name: "userconfig", Type: "string", Default: json.RawMessage(`""`),
			Doc: "Path of the npmrc with credentials, proxy and certificates. Empty: NPM_CONFIG_USERCONFIG, or .npmrc in the home folder of the agent's user.",
		},
	}}, nil
}

// Configure reads and checks npm's settings.
func (s *source) Configure(_ context.Context, config sdk.Config) (sdk.Diagnostics, error) {
	var v struct {
		Registry   string `json:"registry"`
		Userconfig string `json:"userconfig"`
	}
	if len(config.JSON) > 0 {
		if err := json.Unmarshal(config.JSON, &v); err != nil {
			return nil, fmt.Errorf("config: %w", err)
		}
	}
	var d sdk.Diagnostics
	complain := func(sev sdk.Severity, at, summary, format string, args ...any) {
		x := sdk.Diagnostic{Severity: sev, Summary: summary, Detail: fmt.Sprintf(format, args...)}
		if at != "" {
			x.Path = []any{at}
		}
		d = append(d, x)
	}
	if v.Userconfig != "" && !path.IsAbs(v.Userconfig) {
		complain(sdk.Error, "userconfig", "Not a whole path", "%q is relative to nothing. Write the file's whole path, without ~.", v.Userconfig)
		return d, nil
	}
	settings, err := loadSettings(s.environ, v.Userconfig, v.Registry)
	if err != nil {
		complain(sdk.Error, at(v.Userconfig, "userconfig"), "Unreadable npmrc", "%v. Correct the file or its permissions.", err)
		return d, nil
	}
	if v.Userconfig != "" && !slices.Contains(settings.files, v.Userconfig) {
		complain(sdk.Error, "userconfig", "No such file", "%s is not there.", v.Userconfig)
	}
	if _, err := settings.registry(""); err != nil {
		complain(sdk.Error, at(v.Registry, "registry"), "Unusable registry", "It must begin with https:// or http://: %v.", err)
	}
	for _, scheme := range []string{"https", "http"} {
		if _, err := settings.proxy(&url.URL{Scheme: scheme, Host: "any.invalid"}); err != nil {
			complain(sdk.Error, "", "Unusable proxy", "Correct the proxy settings in %s: %v.", settings.file(), err)
			break
		}
	}
	if settings.allow, err = origin.ParsePrefixes(config.AllowAddresses); err != nil {
		return nil, err
	}
	c, err := newClient(settings, "rbee-catalog-npm/"+s.version, s.stall, s.backoff, s.private)
	if err != nil {
		complain(sdk.Error, "", "Unusable certificates", "Correct the setting in %s: %v.", settings.file(), err)
	}
	if d.HasErrors() {
		return d, nil
	}
	if settings.values["strict-ssl"] == "false" {
		complain(sdk.Warning, "", "Certificates are not checked",
			"strict-ssl is false in npm's settings, so anybody on the way can pretend to be the registry. Set cafile instead.")
	}
	for _, name := range settings.unset {
		complain(sdk.Warning, "", "Variable not set",
			"npm's settings ask for the environment variable %s, which does not reach the plugin. If it is set for the agent, write env = [%q] into the block catalog \"npm\".", name, name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		s.client.close()
	}
	s.client = c
	return d, nil
}

// at returns the path of an attribute that is set.
func at(value, name string) string {
	if value == "" {
		return ""
	}
	return name
}

func (s *source) configured() (*client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		return nil, errors.New("the catalog source npm is not configured")
	}
	return s.client, nil
}

// Search searches the registry for packages. npm has no models, so a search for those sends no
// request.
func (s *source) Search(ctx context.Context, q catalog.Query, emit func(catalog.Item) error) error {
	if q.Kind == catalog.KindModel || strings.TrimSpace(q.Text) == "" {
		return nil
	}
	c, err := s.configured()
	if err != nil {
		return err
	}
	registry, err := c.settings.registry("")
	if err != nil {
		return err
	}
	limit := searchLimit
	if q.Limit > 0 {
		limit = min(q.Limit, limit)
	}
	u := registry.JoinPath("-/v1/search")
	u.RawQuery = url.Values{"text": {q.Text}, "size": {fmt.Sprint(limit)}}.Encode()
	var found struct {
		Objects []struct {
			Package struct {
				Name        string `json:"name"`
				Version     string `json:"version"`
				Description string `json:"description"`
				License     string `json:"license"`
			} `json:"package"`
		} `json:"objects"`
	}
	if err := c.get(ctx, u, "application/json", &found); err != nil {
		if f, ok := errors.AsType[*failure](err); ok && (f.status == http.StatusNotFound || f.status == http.StatusMethodNotAllowed || f.status == http.StatusNotImplemented) {
			return nil // many mirrors cannot be searched
		}
		return err
	}
	for _, o := range found.Objects[:min(limit, len(found.Objects))] {
		p := o.Package
		ref, err := parseRef(p.Name + "@" + p.Version)
		if err != nil {
			continue
		}
		summary, _, _ := strings.Cut(p.Description, "\n")
		if err := emit(catalog.Item{Ref: ref.String(), Kind: catalog.KindEngine, Name: p.Name, Summary: summary, License: p.License}); err != nil {
			return err
		}
	}
	return nil
}

// Resolve asks the registry for the archive of a version or tag.
func (s *source) Resolve(ctx context.Context, text string) (catalog.Manifest, error) {
	ref, err := parseRef(text)
	if err != nil {
		return catalog.Manifest{}, err
	}
	c, err := s.configured()
	if err != nil {
		return catalog.Manifest{}, err
	}
	r, registry, err := c.lookup(ctx, ref)
	if err != nil {
		return catalog.Manifest{}, err
	}
	exact := packageRef{scope: ref.scope, name: ref.name, version: r.Version}
	digest, err := r.digest()
	if err != nil {
		return catalog.Manifest{}, fmt.Errorf("%s: %w", exact, err)
	}
	u, err := c.tarball(r, registry)
	if err != nil {
		return catalog.Manifest{}, fmt.Errorf("%s: %w", exact, err)
	}
	return catalog.Manifest{
		Ref: exact.String(), Name: path.Base(ref.name), Kind: catalog.KindEngine, Version: r.Version, License: r.license(),
		Files: []catalog.File{{Ref: exact.String(), Path: fileName(exact, r.Version, u), SizeBytes: c.size(ctx, u), Digest: digest, Locator: u.String()}},
	}, nil
}

// Fetch writes the archive from offset on.
func (s *source) Fetch(ctx context.Context, f catalog.File, offset int64, w io.Writer) error {
	c, err := s.configured()
	if err != nil {
		return err
	}
	u, err := url.Parse(f.Locator)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil {
		return fmt.Errorf("%q is not an address of an archive: %w", redacted(f.Locator), catalog.ErrInvalid)
	}
	if offset < 0 || f.SizeBytes > 0 && offset > f.SizeBytes {
		return fmt.Errorf("%s has %d bytes and cannot be read from %d: %w", f.Path, f.SizeBytes, offset, catalog.ErrInvalid)
	}
	err = c.transfer(ctx, u, f.SizeBytes, offset, w)
	if errors.Is(err, catalog.ErrNotFound) {
		return sdk.WithHint(err, "The registry lists the archive but does not have it. Try another version, or another registry in %s.", c.settings.file())
	}
	return err
}
