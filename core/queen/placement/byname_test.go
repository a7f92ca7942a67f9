package placement

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/queen/hives"
)

// A model without files can be started only where it is offered, one with files anywhere.
func TestStoredByName(t *testing.T) {
	t.Parallel()
	lists := []hives.Answer[[]core.Model]{
		{Hive: core.Hive{ID: "h1"}, Value: []core.Model{{ID: "far"}, {ID: "near", Digest: "sha256:1"}}},
		{Hive: core.Hive{ID: "h2"}, Value: []core.Model{{ID: "other"}}},
	}
	m, ok, err := stored(lists, "far", nil)
	must.NoError(t, err)
	must.True(t, ok)
	argument, served, ok := m.on("h1")
	must.True(t, ok)
	must.Eq(t, "far far", argument+" "+served)
	_, _, ok = m.on("h2")
	must.False(t, ok)
	must.Eq(t, []string{"far"}, m.names()) // "other" has no digest either, but is another model

	m, ok, err = stored(lists, "near", nil)
	must.NoError(t, err)
	must.True(t, ok)
	_, _, ok = m.on("h2")
	must.True(t, ok)
}
