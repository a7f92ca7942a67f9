package state

import (
	"fmt"
	"testing"

	"github.com/shoenig/test/must"
)

// An index never changes: readers use an old one while the next is made. The next one has
// everything except what was changed, whichever models share a part of it.
func TestRouteIndexConstant(t *testing.T) {
	t.Parallel()
	const models = 2000 // several in each part
	name := func(i int) string { return fmt.Sprint("model-", i) }
	all := map[string]*routes{}
	for i := range models {
		all[name(i)] = &routes{Model: name(i)}
	}
	index := newRouteIndex().with(all)
	for i := range models {
		other, gone := name(i), name((i+1)%models)
		replaced := &routes{Model: other}
		next := index.with(map[string]*routes{other: replaced, gone: nil, "new": replaced})
		must.True(t, next.get(other) == replaced)
		must.Nil(t, next.get(gone))
		must.True(t, next.get("new") == replaced)
		must.True(t, index.get(other) == all[other], must.Sprint(i))
		must.True(t, index.get(gone) == all[gone], must.Sprint(i))
		must.Nil(t, index.get("new"))
	}
	next := index.with(map[string]*routes{name(0): nil})
	for i := 1; i < models; i++ {
		must.True(t, next.get(name(i)) == all[name(i)], must.Sprint(i))
	}
	must.True(t, index.with(nil) == index)
}
