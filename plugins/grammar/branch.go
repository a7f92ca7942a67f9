package grammar

import (
	"fmt"
	"slices"
	"sync"
)

// After a byte or two, a walk over all tokens often reaches a position that the characters of a
// class lead back to: after the space of " word", when words are counted. The tokens below such a
// node behave alike in every walk, as long as they stay within the class.

const (
	minBranch   = 64 // minimum nodes below one for its branch to be cached
	maxBranches = 16 // classes cached per vocabulary
)

// branches caches, for one class of characters, how tokens continue below nodes of the vocabulary's
// trie. It is safe for concurrent use.
type branches struct {
	class runs

	mu sync.Mutex // guards below
	at map[int32]*branch
}

// branch is the tokens below one node: those that stay within the class, and the rest of those that
// leave it, from where they leave.
type branch struct {
	stay  []int32
	later *trie
}

// branchesOf returns the cache for a class.
func (v *Vocabulary) branchesOf(class []runeRange, raw bool) *branches {
	key := fmt.Sprint(class, raw)
	v.mu.Lock()
	defer v.mu.Unlock()
	b := v.branches[key]
	if b != nil {
		return b
	}
	if len(v.branches) >= maxBranches {
		for k := range v.branches {
			delete(v.branches, k)
			break
		}
	}
	b = &branches{class: runs{class: class, raw: raw}, at: map[int32]*branch{}}
	b.class.fillASCII()
	v.branches[key] = b
	return b
}

// below returns the branch of node i, where a character ends, or nil if most tokens leave the
// class, so that caching would not help.
func (b *branches) below(v *Vocabulary, i int32) *branch {
	b.mu.Lock()
	defer b.mu.Unlock()
	out, known := b.at[i]
	if known {
		return out
	}
	t := v.trie
	var cuts []int32
	out = &branch{}
	v.follow(&b.class, int(i)+1, int(t.skip[i]), func(ids []int32, _ int) {
		out.stay = append(out.stay, ids...)
	}, func(node int32, _ int) { cuts = append(cuts, node) })
	left := 0
	for _, c := range cuts {
		left += int(t.skip[c] - c)
	}
	if left > int(t.skip[i]-i)/2 {
		out = nil
	} else {
		out.stay, out.later = slices.Clip(out.stay), t.merge(cuts)
	}
	b.at[i] = out
	return out
}

// loopAt returns the cache of v for the characters that lead from l back to it, or nil.
func (w *walker) loopAt(l *leaf) *branches {
	if l.loopOf != w.v {
		l.loopOf, l.loop = w.v, nil
		if (l.kind == lString || l.kind == lText) && l.mode == mChar && l.base == nil && !l.keep {
			if r, ok := w.g.set.runOf(l.q); ok && r.loop {
				l.loop = w.v.branchesOf(r.class, l.kind == lText)
			}
		}
	}
	return l.loop
}

// branch sets the tokens below node i of the vocabulary's trie that may follow, where that node
// leads to l. It reports false if no cached branch helps.
func (w *walker) branch(i int, l *leaf, stk *stack) bool {
	t := w.v.trie
	if int(t.skip[i])-i < minBranch {
		return false
	}
	all := w.loopAt(l)
	if all == nil {
		return false
	}
	b := all.below(w.v, int32(i))
	if b == nil {
		return false
	}
	if k := t.tok[i]; k >= 0 {
		w.set(t.tokens[k])
	}
	w.set(b.stay)
	above := slices.Clone(w.leaves[:t.depth[i]])
	w.walk(b.later, &config{thread: thread{l, stk}})
	copy(w.leaves[:], above)
	return true
}
