package pluginhost_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pluginhost"
)

// folded makes a plugin folder with a catalog source that is a folder: a script beside its program.
func folded(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(shortDir(t), "plugins")
	inner := filepath.Join(dir, "rbee-catalog-fold")
	must.NoError(t, os.MkdirAll(inner, 0o755))
	must.NoError(t, os.WriteFile(filepath.Join(inner, "rbee-catalog-fold"), []byte("#!/bin/sh\nexec \"$(dirname \"$0\")/program\"\n"), 0o755))
	data, err := os.ReadFile(filepath.Join(built, "rbee-catalog-fake"))
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(filepath.Join(inner, "program"), data, 0o755))
	return dir
}

func TestFolderPlugin(t *testing.T) {
	t.Parallel()
	dir := folded(t)
	h := newHost(t, func(o *pluginhost.Options) { o.PluginDir = dir })
	list, err := h.List()
	must.NoError(t, err)
	must.Len(t, 1, list)
	must.Eq(t, "", list[0].Problem)
	must.Eq(t, filepath.Join(dir, "rbee-catalog-fold"), list[0].Folder)
	spec, err := h.DefaultSpec("catalog", "fold")
	must.NoError(t, err)
	c, err := h.LaunchCatalog(t.Context(), spec)
	must.NoError(t, err)
	must.NoError(t, c.Close())

	// The configuration's digest is that of the whole folder.
	sum, err := h.CodeDigest(spec)
	must.NoError(t, err)
	configured := func() (pluginhost.Spec, error) {
		return h.Spec(load(t, fmt.Sprintf("catalog \"fold\" {\n  sha256 = %q\n}", strings.TrimPrefix(sum, "sha256:"))).Catalogs[0])
	}
	spec, err = configured()
	must.NoError(t, err)
	c, err = h.LaunchCatalog(t.Context(), spec)
	must.NoError(t, err)
	must.NoError(t, c.Close())
	must.NoError(t, os.WriteFile(filepath.Join(dir, "rbee-catalog-fold", "more.txt"), nil, 0o644))
	_, err = h.LaunchCatalog(t.Context(), spec)
	must.Eq(t, core.Integrity, core.KindOf(err))

	// Anything that is not allowed in such a folder makes it unusable, with an explanation.
	must.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, "rbee-catalog-fold", "link")))
	list, err = h.List()
	must.NoError(t, err)
	must.StrContains(t, list[0].Problem, "neither a file nor a folder")
	_, err = configured()
	must.Eq(t, core.Unsupported, core.KindOf(err))
	must.NoError(t, os.Remove(filepath.Join(dir, "rbee-catalog-fold", "link")))
	must.NoError(t, os.Remove(filepath.Join(dir, "rbee-catalog-fold", "rbee-catalog-fold")))
	_, err = configured()
	must.ErrorContains(t, err, "has no file rbee-catalog-fold")
}
