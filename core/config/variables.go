package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// Misspelt returns a sentence for each variable of environ ("NAME=value") that looks like a
// misspelt variable of rbee, with the names that may be meant. others lists rbee's variables that
// belong to no setting. The sentences contain no values.
func Misspelt(environ []string, others ...string) []string {
	known := slices.Clone(others)
	blocks := map[string]bool{}
	for _, s := range settings() {
		known = append(known, s.env())
		if block, _, nested := strings.Cut(s.name, "."); nested {
			blocks[strings.ToUpper(block)] = true
		}
	}
	var out []string
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		words, ours := strings.CutPrefix(strings.ToUpper(name), "RBEE_")
		if !ours || value == "" || slices.Contains(known, name) {
			continue
		}
		first, _, _ := strings.Cut(words, "_")
		near := variablesLike(name, known)
		switch {
		case len(near) > 0:
			out = append(out, fmt.Sprintf("The variable %s has no effect. Did you mean %s?", name, strings.Join(near, " or ")))
		case blocks[first]:
			out = append(out, fmt.Sprintf("The variable %s has no effect: there is no such setting. \"rbee config show\" lists all.", name))
		}
	}
	slices.Sort(out)
	return out
}

// variablesLike returns at most three of known that name may stand for: those that contain all its
// words, in its order, else those with similar spelling.
func variablesLike(name string, known []string) []string {
	var out []string
	for _, k := range known {
		left := strings.Split(strings.ToUpper(name), "_")
		for word := range strings.SplitSeq(k, "_") {
			if len(left) > 0 && left[0] == word {
				left = left[1:]
			}
		}
		if len(left) == 0 {
			out = append(out, k)
		}
	}
	if len(out) == 0 {
		out = core.Nearest(name, known)
	}
	return out[:min(len(out), 3)]
}
