package state

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// A query by anything but one key is a programming error, and must not find a row by chance.
func TestIndexRefusesOtherQueries(t *testing.T) {
	t.Parallel()
	i := &indexer[core.Node]{func(n *core.Node) key { return text(n.ID) }}
	for name, c := range map[string]struct {
		args          []any
		exact, prefix bool
	}{
		"a key":     {[]any{text("a")}, true, true},
		"empty":     {[]any{key(nil)}, false, true},
		"two":       {[]any{text("a"), text("b")}, false, false},
		"none":      {nil, false, false},
		"no key":    {[]any{"a"}, false, false},
		"two texts": {[]any{"a", "b"}, false, false},
	} {
		k, err := i.FromArgs(c.args...)
		must.Eq(t, c.exact, err == nil, must.Sprint(name))
		must.Eq(t, c.exact, len(k) > 0, must.Sprint(name))
		_, err = i.PrefixFromArgs(c.args...)
		must.Eq(t, c.prefix, err == nil, must.Sprint(name))
	}
	_, _, err := i.FromObject(&core.Hive{ID: "a"})
	must.ErrorContains(t, err, "a *core.Hive in a table of *core.Node")
	has, k, err := i.FromObject(&core.Node{ID: "a"})
	must.NoError(t, err)
	must.True(t, has)
	must.Eq(t, []byte(text("a")), k)
	has, _, err = i.FromObject(&core.Node{})
	must.NoError(t, err)
	must.False(t, has)
	must.Nil(t, workerKey("h", ""))
	must.Nil(t, intentKey("h", ""))
	must.Nil(t, intentKey("", "n"))
}
