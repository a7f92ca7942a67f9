package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
)

const (
	indexFresh = time.Minute // age up to which an index is not requested again
	maxEntries = 10_000
)

// entry is a model or an engine of an index document.
type entry struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"` // "model", "engine"; empty: by the file's name
	Summary string `json:"summary"`
	Version string `json:"version"`
	License string `json:"license"`
	// Only for an entry of one file. Another one has Files, beginning with the GGUF to load.
	URL    string      `json:"url"` // may be relative to the index's address
	SHA256 string      `json:"sha256"`
	SHA512 string      `json:"sha512"`
	Size   int64       `json:"size"` // bytes; 0: unknown
	Files  []entryFile `json:"files"`
}

type entryFile struct {
	URL    string `json:"url"`
	SHA256 string `json:"sha256"`
	SHA512 string `json:"sha512"`
	Size   int64  `json:"size"`
}

// listed is an entry with absolute addresses.
type listed struct {
	entry
	links []link
	sizes []int64
}

// index is an index document with its last contents.
type index struct {
	url *url.URL

	mu      sync.Mutex // guards below, and is held during a request for the document
	etag    string
	read    time.Time
	entries []listed
}

// parseIndex reads a list of entries, or an object with the list as "models". An unusable entry
// invalidates the document, so that its author notices.
func parseIndex(at *url.URL, body []byte) ([]listed, error) {
	var entries []entry
	if json.Unmarshal(body, &entries) != nil {
		var object struct {
			Models []entry `json:"models"`
		}
		if err := json.Unmarshal(body, &object); err != nil {
			return nil, fmt.Errorf("not a list of models in JSON: %w", err)
		}
		entries = object.Models
	}
	if len(entries) > maxEntries {
		return nil, fmt.Errorf("it has %d entries, more than %d", len(entries), maxEntries)
	}
	seen := map[string]bool{}
	var out []listed
	for i, e := range entries {
		l, err := e.listed(at)
		if err == nil && seen[e.Name] {
			err = errors.New("duplicate name")
		}
		if err != nil {
			return nil, fmt.Errorf("entry %d (%.100q): %w", i, e.Name, err)
		}
		seen[e.Name] = true
		out = append(out, l)
	}
	return out, nil
}

func (e entry) listed(at *url.URL) (listed, error) {
	if !nameOK.MatchString(e.Name) {
		return listed{}, errors.New("name must be letters, digits, dots, dashes, underscores and plus signs")
	}
	if e.Kind != "" && e.Kind != string(catalog.KindModel) && e.Kind != string(catalog.KindEngine) {
		return listed{}, fmt.Errorf("kind %.100q is neither model nor engine", e.Kind)
	}
	files := e.Files
	if e.URL != "" {
		if len(files) > 0 {
			return listed{}, errors.New("it has both url and files")
		}
		files = []entryFile{{URL: e.URL, SHA256: e.SHA256, SHA512: e.SHA512, Size: e.Size}}
	}
	if len(files) == 0 || len(files) > maxParts {
		return listed{}, fmt.Errorf("it has %d files", len(files))
	}
	l := listed{entry: e}
	names := map[string]bool{}
	for _, f := range files {
		u, err := at.Parse(f.URL)
		if err != nil {
			return listed{}, errors.New("url cannot be read")
		}
		k, err := parseLink(u.String())
		if err != nil {
			return listed{}, err
		}
		switch {
		case f.SHA512 != "":
			k.digest = "sha512:" + strings.ToLower(f.SHA512)
		case f.SHA256 != "":
			k.digest = "sha256:" + strings.ToLower(f.SHA256)
		}
		if k.digest != "" && !digestOK.MatchString(k.digest) {
			return listed{}, fmt.Errorf("%.200q is not a digest", k.digest)
		}
		if k.digest == "" && at.Scheme == "https" && k.url.Scheme == "http" {
			return listed{}, errors.New("a file without encryption needs a digest")
		}
		name, err := k.file()
		if err != nil {
			return listed{}, err
		}
		if f.Size < 0 || names[name] {
			return listed{}, fmt.Errorf("size %d is negative, or two files are called %s", f.Size, name)
		}
		names[name] = true
		l.links = append(l.links, k)
		l.sizes = append(l.sizes, f.Size)
	}
	return l, nil
}

// list returns the contents of the index, at most a minute old.
func (s *source) list(ctx context.Context, x *index) ([]listed, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if now := s.now(); !x.read.IsZero() && now.Sub(x.read) < indexFresh {
		return x.entries, nil
	}
	h, err := s.header(x.url)
	if err != nil {
		return nil, err
	}
	if x.etag != "" {
		h.Set("If-None-Match", x.etag)
	}
	reply, err := s.client.Get(ctx, x.url.String(), h)
	if err != nil {
		return nil, s.explain(x.url, err)
	}
	if reply.Status != http.StatusNotModified {
		entries, err := parseIndex(reply.URL, reply.Body)
		if err != nil {
			return nil, sdk.WithHint(fmt.Errorf("the index document %s: %w: %w", origin.Redact(x.url), err, catalog.ErrIntegrity),
				`It is written [{"name": "my-model", "url": "my-model.gguf", "sha256": "…", "size": 123, "license": "MIT"}].`)
		}
		x.entries, x.etag = entries, reply.Header.Get("ETag")
	}
	x.read = s.now()
	return x.entries, nil
}
