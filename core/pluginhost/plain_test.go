package pluginhost_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// catalogWithoutTLS checks that a catalog plugin may serve without TLS in its private folder, like
// one in a language without go-plugin's AutoMTLS.
func catalogWithoutTLS(t *testing.T, dir string) {
	t.Helper()
	script := fmt.Sprintf("#!/bin/sh\nunset PLUGIN_CLIENT_CERT\nexec %q\n", filepath.Join(dir, "rbee-catalog-old"))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "rbee-catalog-plain"), []byte(script), 0o700)) //nolint:gosec // it is executed
	h := newHost(t, func(o *pluginhost.Options) { o.PluginDir = dir })
	spec, err := h.DefaultSpec(sdk.KindCatalog, "plain")
	must.NoError(t, err)
	c, err := h.LaunchCatalog(t.Context(), spec)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, c.Close()) })
	m, err := c.Resolve(t.Context(), "old")
	must.NoError(t, err)
	var b bytes.Buffer
	must.NoError(t, c.Fetch(t.Context(), m.Files[0], 0, &b))
	must.Eq(t, "GGUF of old", b.String())
	must.NoError(t, c.Search(t.Context(), catalog.Query{}, func(catalog.Item) error { return nil }))
}
