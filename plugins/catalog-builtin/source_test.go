package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest"
)

// The digest named in rbee-tiny.md; a change of the model must change both.
const tinyDigest = "sha256:6fb5f4657d98505c96c25de7f01369dc6fd00d74dd2d5aa71205aab6f14bfde0"

func TestResolveAndFetch(t *testing.T) {
	t.Parallel()
	s := newSource("1.2.3", tiny)
	m, err := s.Resolve(t.Context(), "rbee-tiny")
	must.NoError(t, err)
	must.Eq(t, "rbee-tiny", m.Name)
	must.Eq(t, catalog.KindModel, m.Kind)
	must.Eq(t, "Apache-2.0", m.License)
	must.SliceLen(t, 1, m.Files)
	must.Eq(t, tinyDigest, m.Files[0].Digest)
	must.Eq(t, 2983680, m.Files[0].SizeBytes)

	var whole bytes.Buffer
	must.NoError(t, s.Fetch(t.Context(), m.Files[0], 0, &whole))
	must.Eq(t, tinyDigest, fmt.Sprintf("sha256:%x", sha256.Sum256(whole.Bytes())))
	for _, offset := range []int64{1, 2_000_000, m.Files[0].SizeBytes - 1, m.Files[0].SizeBytes} {
		var rest bytes.Buffer
		must.NoError(t, s.Fetch(t.Context(), m.Files[0], offset, &rest))
		must.True(t, bytes.Equal(whole.Bytes()[offset:], rest.Bytes()), must.Sprintf("from %d", offset))
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	s := newSource("1.2.3", "a model")
	_, err := s.Resolve(t.Context(), "rbee-huge")
	must.ErrorIs(t, err, catalog.ErrNotFound)
	must.StrContains(t, sdk.HintOf(err), "builtin:rbee-tiny")
	for _, f := range []struct {
		locator string
		offset  int64
		is      error
	}{{"rbee-tiny", -1, catalog.ErrInvalid}, {"rbee-tiny", 8, catalog.ErrInvalid}, {"../x", 0, catalog.ErrNotFound}} {
		var b bytes.Buffer
		must.ErrorIs(t, s.Fetch(t.Context(), catalog.File{Locator: f.locator}, f.offset, &b), f.is)
		must.Eq(t, 0, b.Len())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	must.ErrorIs(t, s.Fetch(ctx, catalog.File{Locator: "rbee-tiny"}, 0, &bytes.Buffer{}), context.Canceled)
	d, err := s.Configure(t.Context(), sdk.Config{JSON: json.RawMessage(`{"model":"x"}`)})
	must.NoError(t, err)
	must.True(t, d.HasErrors())
	must.Eq(t, []any{"model"}, d[0].Path)
	d, err = s.Configure(t.Context(), sdk.Config{JSON: json.RawMessage(`{}`)})
	must.NoError(t, err)
	must.SliceEmpty(t, d)
}

func TestSearch(t *testing.T) {
	t.Parallel()
	s := newSource("1.2.3", tiny)
	for _, tc := range []struct {
		q    catalog.Query
		want int
	}{
		{catalog.Query{}, 1},
		{catalog.Query{Text: "TINY"}, 1},
		{catalog.Query{Text: "demos", Kind: catalog.KindModel}, 1},
		{catalog.Query{Text: "llama"}, 0},
		{catalog.Query{Kind: catalog.KindEngine}, 0},
	} {
		got := 0
		must.NoError(t, s.Search(t.Context(), tc.q, func(i catalog.Item) error {
			got++
			must.Eq(t, "rbee-tiny", i.Name)
			return nil
		}))
		must.Eq(t, tc.want, got, must.Sprintf("%+v", tc.q))
	}
}

func TestTextNamesThisFile(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("rbee-tiny.md")
	must.NoError(t, err)
	must.StrContains(t, string(text), strings.TrimPrefix(tinyDigest, "sha256:"))
}

func TestConformance(t *testing.T) {
	t.Parallel()
	sdktest.Catalog(t, sdktest.CatalogInProcess(func() catalog.Source { return newSource("1.2.3", tiny) }), sdktest.CatalogOptions{
		BadConfig: json.RawMessage(`{"model":"x"}`), Ref: "rbee-tiny", NoRef: "rbee-huge", Query: "rbee-tiny",
	})
}
