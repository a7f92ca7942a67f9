package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

const (
	tinyName    = "rbee-tiny"
	tinyFile    = "rbee-tiny.gguf"
	tinySummary = "rbee's own very small chat model, for demos and tests: a toy that speaks English"
	tinyLicense = "Apache-2.0"
)

// source offers one model. It has no state except the model's bytes.
type source struct {
	version string
	model   string
	digest  func() string
}

var _ catalog.Source = (*source)(nil)

func newSource(version, model string) *source {
	return &source{version: version, model: model, digest: sync.OnceValue(func() string {
		h := sha256.New()
		_, _ = io.Copy(h, strings.NewReader(model)) // neither fails
		return "sha256:" + hex.EncodeToString(h.Sum(nil))
	})}
}

// Info describes the source.
func (s *source) Info(context.Context) (sdk.Info, error) {
	return sdk.Info{Name: "builtin", Kind: sdk.KindCatalog, Version: s.version, Summary: "Carries rbee-tiny, a very small model of rbee's own."}, nil
}

// Schema returns an empty schema: there is nothing to configure.
func (s *source) Schema(context.Context) (sdk.Schema, error) { return sdk.Schema{}, nil }

// Configure refuses anything but an empty block.
func (s *source) Configure(_ context.Context, config sdk.Config) (sdk.Diagnostics, error) {
	if len(config.JSON) == 0 {
		return nil, nil
	}
	var set map[string]json.RawMessage
	if err := json.Unmarshal(config.JSON, &set); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	var d sdk.Diagnostics
	for name := range set {
		d = append(d, sdk.Diagnostic{Summary: "Unsupported argument", Detail: "The catalog source builtin has nothing to configure. Leave its config block empty.", Path: []any{name}})
	}
	return d, nil
}

// Search emits the model if it matches the query.
func (s *source) Search(_ context.Context, q catalog.Query, emit func(catalog.Item) error) error {
	if q.Kind != "" && q.Kind != catalog.KindModel || !strings.Contains(tinyName+" "+strings.ToLower(tinySummary), strings.ToLower(q.Text)) {
		return nil
	}
	return emit(catalog.Item{Ref: tinyName, Kind: catalog.KindModel, Name: tinyName, Summary: tinySummary, SizeBytes: int64(len(s.model)), License: tinyLicense})
}

// Resolve resolves the only reference.
func (s *source) Resolve(_ context.Context, ref string) (catalog.Manifest, error) {
	if ref != tinyName {
		return catalog.Manifest{}, sdk.WithHint(fmt.Errorf("no built-in model %q: %w", ref, catalog.ErrNotFound), "The only one is builtin:%s.", tinyName)
	}
	return catalog.Manifest{
		Ref: tinyName, Name: tinyName, Kind: catalog.KindModel, License: tinyLicense,
		Files: []catalog.File{{Ref: tinyName, Path: tinyFile, SizeBytes: int64(len(s.model)), Digest: s.digest(), Locator: tinyName}},
	}, nil
}

// Fetch writes the model from offset on.
func (s *source) Fetch(ctx context.Context, f catalog.File, offset int64, w io.Writer) error {
	if f.Locator != tinyName {
		return fmt.Errorf("no built-in file %q: %w", f.Locator, catalog.ErrNotFound)
	}
	if offset < 0 || offset > int64(len(s.model)) {
		return fmt.Errorf("%s has %d bytes and cannot be read from %d: %w", tinyFile, len(s.model), offset, catalog.ErrInvalid)
	}
	for rest := s.model[offset:]; rest != ""; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(len(rest), catalog.MaxChunkBytes)
		if _, err := io.WriteString(w, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}
