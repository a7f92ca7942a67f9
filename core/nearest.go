package core

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Nearest returns at most three of names that want is most likely a misspelling or a part of,
// nearest first, or none if nothing is similar. It ignores case, and compares only the first 128
// runes.
func Nearest(want string, names []string) []string {
	type near struct {
		name  string
		edits int
	}
	lower := clipRunes(strings.ToLower(want))
	var found []near
	for _, n := range names {
		name := clipRunes(strings.ToLower(n))
		d := edits(lower, name)
		if len(lower) >= 3 && len(name) >= 3 && (strings.Contains(string(name), string(lower)) || strings.Contains(string(lower), string(name))) {
			d = min(d, 1)
		}
		// At most a third of the name may differ, and never all of it.
		if d <= max(2, len(lower)/3) && d < max(len(lower), len(name)) {
			found = append(found, near{n, d})
		}
	}
	slices.SortFunc(found, func(a, b near) int { return cmp.Or(cmp.Compare(a.edits, b.edits), cmp.Compare(a.name, b.name)) })
	var out []string
	for _, f := range slices.Compact(found) {
		if len(out) < 3 {
			out = append(out, f.name)
		}
	}
	return out
}

func clipRunes(s string) []rune {
	r := []rune(s)
	return r[:min(len(r), 128)]
}

// edits returns the number of single-rune insertions, deletions and replacements that turn a into b
// (Levenshtein).
func edits(a, b []rune) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range a {
		diagonal := row[0]
		row[0] = i + 1
		for j := range b {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal, row[j+1] = row[j+1], min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// NearestHint returns the names most similar to want, best first, as the start of a hint: `The
// nearest names are "a", "b". `. It is empty if nothing is similar.
func NearestHint(want string, names []string) string {
	var quoted []string
	for _, n := range Nearest(want, names) {
		quoted = append(quoted, strconv.Quote(n))
	}
	switch len(quoted) {
	case 0:
		return ""
	case 1:
		return "The nearest name is " + quoted[0] + ". "
	}
	return "The nearest names are " + strings.Join(quoted, ", ") + ". "
}
