package queen

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// nearest gives the names most like the wanted one, best first, as the start of a hint: `The
// nearest names are "a", "b". `. It is empty where nothing is alike.
func nearest(want string, names []string) string {
	var quoted []string
	for _, n := range core.Nearest(want, names) {
		quoted = append(quoted, fmt.Sprintf("%q", n))
	}
	switch len(quoted) {
	case 0:
		return ""
	case 1:
		return "The nearest name is " + quoted[0] + ". "
	}
	return "The nearest names are " + strings.Join(quoted, ", ") + ". "
}

// unique gives the names sorted, each once, without the empty one.
func unique(names []string) []string {
	names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == "" })
	slices.Sort(names)
	return slices.Compact(names)
}

// ownName is what people call this queen.
func (q *Queen) ownName() string {
	if m := q.opts.Membership; m != nil {
		return cmp.Or(m.Identity.Node().Name, q.opts.ID)
	}
	return q.opts.ID
}
