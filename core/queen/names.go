package queen

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// maxNearest is how many names a hint offers.
const maxNearest = 3

// nearest gives the names most like the wanted one, best first, as the start of a hint: `The nearest names are "a", "b". `. It is empty where
// nothing is alike.
func nearest(want string, names []string) string {
	type near struct {
		name     string
		distance int
	}
	lower := strings.ToLower(want)
	var found []near
	for _, n := range unique(names) {
		name := strings.ToLower(n)
		d := distance(lower, name)
		if lower != "" && (strings.Contains(name, lower) || strings.Contains(lower, name)) {
			d = min(d, 1)
		}
		if d <= max(2, len([]rune(lower))/2) {
			found = append(found, near{n, d})
		}
	}
	slices.SortFunc(found, func(a, b near) int { return cmp.Or(cmp.Compare(a.distance, b.distance), cmp.Compare(a.name, b.name)) })
	if len(found) > maxNearest {
		found = found[:maxNearest]
	}
	var quoted []string
	for _, f := range found {
		quoted = append(quoted, fmt.Sprintf("%q", f.name))
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

// maxDistanceRunes bounds the work on names that somebody sent.
const maxDistanceRunes = 128

// distance is the number of runes to insert, delete or replace (Levenshtein). Names beyond maxDistanceRunes are compared by their beginning.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	x, y = x[:min(len(x), maxDistanceRunes)], y[:min(len(y), maxDistanceRunes)]
	row := make([]int, len(y)+1)
	for j := range row {
		row[j] = j
	}
	for i := range x {
		diagonal := row[0]
		row[0] = i + 1
		for j := range y {
			cost := 1
			if x[i] == y[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(y)]
}
