package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// generate writes a model of this shape with random weights and returns its path.
func generate(t testing.TB, name string, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), name)
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"run", "../../../core/coretest/ggufgen", "-out", out}, args...)...)
	text, err := cmd.CombinedOutput()
	must.NoError(t, err, must.Sprintf("%s", text))
	return out
}

// ownStore returns a store folder with the engine of the shared one, for a test that counts or
// deletes models.
func ownStore(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	must.NoError(t, os.CopyFS(filepath.Join(dir, "workers"), os.DirFS(filepath.Join(sharedStore(t), "workers"))))
	return dir
}

// A model in several files is one model: the engine finds them all, and rm removes them all.
func TestModelsOnDisk(t *testing.T) {
	t.Parallel()
	base := generate(t, "pieces", "-preset", "15m", "-layers", "2", "-vocab", "2048", "-split", "3")
	store := ownStore(t)
	a := startAgent(t, agentOptions{config: oneMachine + fileCatalog(filepath.Dir(base)), store: store})
	m := jsonOf[core.Model](a, "pull", "file:"+base+"-00002-of-00003.gguf")
	must.Eq(t, "pieces", m.ID)
	must.Len(t, 3, m.Files)
	w := a.spawn("--model", "pieces", "--context", "256", "--slots", "1")
	var shown core.Model
	must.NoError(t, json.Unmarshal([]byte(a.must("show", "pieces", "--format", "json")), &shown))
	must.Eq(t, 3, shown.Facts.Parts)
	must.Eq(t, []string{w.Worker.ID}, shown.LoadedBy)
	must.Positive(t, shown.Fits[0].NeedBytes)
	must.Eq(t, 0, shown.Fits[0].MissingBytes)

	refused := a.rbee("rm", "pieces", "--yes")
	must.Eq(t, 1, refused.code)
	must.StrContains(t, refused.stderr, w.Worker.ID)
	a.must("stop", w.Worker.ID, "--yes")
	deleted := jsonOf[[]core.ModelDeleteResult](a, "rm", "pieces", "--yes")
	must.Len(t, 3, deleted[0].Files)
	must.Eq(t, m.SizeBytes, deleted[0].FreedBytes)
	for _, folder := range []string{"blobs", "models", "parts"} {
		left, err := os.ReadDir(filepath.Join(store, folder))
		must.NoError(t, err)
		must.SliceEmpty(t, left)
	}
}
