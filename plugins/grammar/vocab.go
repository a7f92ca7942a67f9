package grammar

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"unicode/utf8"
)

// Vocabulary is the tokens of a model, prepared for masks. It is safe for concurrent use.
type Vocabulary struct {
	tokens  [][]byte
	ends    []bool // tokens that end a text
	eos     []int
	words   int   // 64-bit words of a mask
	longest int   // bytes of the longest token
	trie    *trie // all tokens
	hazards *trie // tokens that end a string and begin the text of another one

	every *runs // of any characters of a JSON string

	mu    sync.Mutex // guards below
	runs  map[string]*runs
	asked map[string]bool // the classes that were asked for
}

// runs are the tokens of a vocabulary, sorted by how long they stay within a class of characters
// that stand for themselves: in a JSON string or, if raw, in any text.
type runs struct {
	class []runeRange
	raw   bool
	ascii [utf8.RuneSelf]bool
	all   []uint64  // tokens that stay within it
	size  [][]int32 // [n]: those of n characters
	later *trie     // what tokens go on with that begin within the class and leave it

	mu    sync.Mutex // guards below
	cuts  [][]int32  // [n]: nodes of the vocabulary's trie where tokens leave after n characters
	exits []*trie    // [n]: what they go on with; nil until needed
	whole *trie      // the tokens of cuts as they are; nil until needed
}

// leavers returns the tokens that begin within the class and leave it.
func (r *runs) leavers(v *Vocabulary) *trie {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.whole == nil {
		r.whole = v.trie.through(slices.Concat(r.cuts...))
	}
	return r.whole
}

// exit returns what tokens go on with after n characters of the class, n > 0.
func (r *runs) exit(v *Vocabulary, n int) *trie {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exits[n] == nil {
		r.exits[n] = v.trie.merge(r.cuts[n])
	}
	return r.exits[n]
}

const (
	maxRuns  = 32
	maxAsked = 1000 // classes whose requests are counted
)

// trie holds byte strings in depth-first order.
type trie struct {
	bytes  []byte
	depth  []uint8
	skip   []int32 // index behind the node's subtree
	tokens [][]int32
	tok    []int32 // index into tokens of those that end here, or -1
}

// add appends a node and returns its index. Its subtree ends where skip is set to.
func (t *trie) add(b byte, depth int, ids []int32) int {
	i := len(t.bytes)
	t.bytes = append(t.bytes, b)
	t.depth = append(t.depth, uint8(depth))
	t.skip = append(t.skip, 0)
	t.tok = append(t.tok, -1)
	if len(ids) > 0 {
		t.tok[i] = int32(len(t.tokens))
		t.tokens = append(t.tokens, ids)
	}
	return i
}

// ids returns the tokens that end at node i.
func (t *trie) ids(i int32) []int32 {
	if k := t.tok[i]; k >= 0 {
		return t.tokens[k]
	}
	return nil
}

// merge returns the trie of the byte strings that begin with one of the nodes.
func (t *trie) merge(nodes []int32) *trie {
	out := &trie{}
	t.mergeInto(out, nodes, 0)
	return out
}

func (t *trie) mergeInto(out *trie, nodes []int32, depth int) {
	t.sortByByte(nodes)
	for len(nodes) > 0 {
		n := 1
		for n < len(nodes) && t.bytes[nodes[n]] == t.bytes[nodes[0]] {
			n++
		}
		var ids, next []int32
		if n == 1 {
			ids = t.ids(nodes[0])
		}
		for _, i := range nodes[:n] {
			if n > 1 {
				ids = append(ids, t.ids(i)...)
			}
			for c := i + 1; c < t.skip[i]; c = t.skip[c] {
				next = append(next, c)
			}
		}
		at := out.add(t.bytes[nodes[0]], depth, ids)
		t.mergeInto(out, next, depth+1)
		out.skip[at] = int32(len(out.bytes))
		nodes = nodes[n:]
	}
}

func (t *trie) sortByByte(nodes []int32) {
	if len(nodes) < 100 {
		slices.SortFunc(nodes, func(a, b int32) int { return int(t.bytes[a]) - int(t.bytes[b]) })
		return
	}
	var at [257]int
	for _, i := range nodes {
		at[int(t.bytes[i])+1]++
	}
	for b := range 256 {
		at[b+1] += at[b]
	}
	for _, i := range slices.Clone(nodes) {
		nodes[at[t.bytes[i]]] = i
		at[t.bytes[i]]++
	}
}

// through returns the trie of the byte strings that pass one of the nodes.
func (t *trie) through(nodes []int32) *trie {
	const above, all = 1, 2
	mark := make([]uint8, len(t.bytes))
	for _, i := range nodes {
		mark[i] = all
	}
	var path [256]int
	for i := 0; i < len(t.bytes); {
		d := int(t.depth[i])
		path[d] = i
		if mark[i] != all {
			i++
			continue
		}
		for d--; d >= 0 && mark[path[d]] == 0; d-- {
			mark[path[d]] = above
		}
		i = int(t.skip[i])
	}
	out := &trie{}
	var copies [256]int
	end := 0 // of a subtree that is copied as a whole
	for i := 0; i < len(t.bytes); {
		if i >= end {
			switch mark[i] {
			case 0:
				i = int(t.skip[i])
				continue
			case all:
				end = int(t.skip[i])
			}
		}
		d := int(t.depth[i])
		var ids []int32
		if i < end {
			ids = t.ids(int32(i))
		}
		out.close(&copies, d)
		copies[d] = out.add(t.bytes[i], d, ids)
		i++
	}
	out.close(&copies, 0)
	return out
}

// close ends the subtrees of the last node and those above it, down to a depth. path holds the
// nodes by depth.
func (t *trie) close(path *[256]int, depth int) {
	if len(t.bytes) == 0 {
		return
	}
	for d := int(t.depth[len(t.depth)-1]); d >= depth; d-- {
		t.skip[path[d]] = int32(len(t.bytes))
	}
}

// maxToken is the length of the longest token that a mask can hold.
const maxToken = 255

// NewVocabulary prepares the tokens of a model: the bytes of each token by its number, empty for
// those that stand for no text, and the numbers of those that end a text. It keeps tokens. No
// text takes a token of more than 255 bytes.
func NewVocabulary(tokens [][]byte, eos ...int) *Vocabulary {
	v := &Vocabulary{tokens: tokens, eos: eos, words: (len(tokens) + 63) / 64, runs: map[string]*runs{}, asked: map[string]bool{}}
	v.ends = make([]bool, len(tokens))
	for _, id := range eos {
		if id >= 0 && id < len(tokens) {
			v.ends[id] = true
		}
	}
	ids := make([]int32, len(tokens))
	all := make([]entry, 0, len(tokens))
	var hazards []entry
	for id, t := range tokens {
		if !v.usable(id) {
			continue
		}
		v.longest = max(v.longest, len(t))
		ids[id] = int32(id)
		e := entry{t, ids[id : id+1 : id+1]}
		all = append(all, e)
		if hazardous(t) {
			hazards = append(hazards, e)
		}
	}
	v.trie, v.hazards = newTrie(all), newTrie(hazards)
	v.every = v.newRuns([]runeRange{{0, maxRune}}, false)
	return v
}

func (v *Vocabulary) usable(id int) bool {
	n := len(v.tokens[id])
	return n > 0 && n <= maxToken && !v.ends[id]
}

// runsOf returns the runs of a class. Sorting the tokens takes longer than one walk over them: the
// first time that a class is asked for, runsOf returns nil, unless they are needed.
func (v *Vocabulary) runsOf(class []runeRange, raw, needed bool) *runs {
	if !raw && len(class) == 1 && class[0] == (runeRange{0, maxRune}) {
		return v.every
	}
	key := fmt.Sprint(class, raw)
	v.mu.Lock()
	defer v.mu.Unlock()
	r := v.runs[key]
	if r != nil {
		return r
	}
	if !needed && !v.asked[key] {
		if len(v.asked) >= maxAsked {
			clear(v.asked)
		}
		v.asked[key] = true
		return nil
	}
	if len(v.runs) >= maxRuns {
		for k := range v.runs {
			delete(v.runs, k)
			break
		}
	}
	r = v.newRuns(class, raw)
	v.runs[key] = r
	return r
}

// newRuns walks over the tokens as far as they stay within the class. An incomplete character at
// the end of a token counts, if the class holds all characters with its first byte.
func (v *Vocabulary) newRuns(class []runeRange, raw bool) *runs {
	r := &runs{class: class, raw: raw, all: make([]uint64, v.words)}
	for b := range r.ascii {
		r.ascii[b] = (raw || b >= 0x20 && b != '"' && b != '\\') && r.contains(rune(b), rune(b))
	}
	t := v.trie
	var path [256]byte
	var nodes [256]int32
	var chars, begins [256]int // complete characters, and where the next one begins
	last := int32(-1)          // node where tokens left
	for i := 0; i < len(t.bytes); {
		d, n, from := int(t.depth[i]), 0, 0
		if d > 0 {
			n, from = chars[d-1], begins[d-1]
		}
		path[d], nodes[d] = t.bytes[i], int32(i)
		fits := r.fits(path[from : d+1])
		inside := fits == fitsYes || fits == fitsYet && t.tok[i] >= 0 && r.contains(span(path[from]))
		if k := t.tok[i]; k >= 0 && inside {
			r.stay(t.tokens[k], n+1)
		}
		// All tokens that share the first byte of the character count as leaving: what they go
		// on with is followed byte by byte.
		if leaves := fits == fitsNot && (raw || path[from] >= 0x20) || fits == fitsYet && t.tok[i] >= 0 && !inside; leaves && nodes[from] != last {
			last = nodes[from]
			r.leave(last, n)
		}
		if fits == fitsNot || fits == fitsNever {
			i = int(t.skip[i])
			continue
		}
		if fits == fitsYes {
			n, from = n+1, d+1
		}
		chars[d], begins[d] = n, from
		i++
	}
	r.exits = make([]*trie, len(r.cuts))
	r.later = t.merge(slices.Concat(r.cuts...))
	return r
}

type fit uint8

const (
	fitsNot   fit = iota // the character is outside of the class
	fitsYes              // or inside
	fitsYet              // it is incomplete
	fitsNever            // it is none
)

// fits reports whether the character that begins with b belongs to the class.
func (r *runs) fits(b []byte) fit {
	if b[0] < utf8.RuneSelf {
		if r.ascii[b[0]] {
			return fitsYes
		}
		return fitsNot
	}
	c, n := utf8.DecodeRune(b)
	switch {
	case c == utf8.RuneError && n == 1 && utf8.FullRune(b):
		return fitsNever
	case c == utf8.RuneError && n == 1:
		return fitsYet
	case r.contains(c, c):
		return fitsYes
	}
	return fitsNot
}

// stay notes tokens of n characters that stay within the class.
func (r *runs) stay(ids []int32, n int) {
	for len(r.size) <= n {
		r.size = append(r.size, nil)
	}
	r.size[n] = append(r.size[n], ids...)
	for _, id := range ids {
		r.all[id/64] |= 1 << (id % 64)
	}
}

// leave notes that tokens leave the class after n characters, at a node.
func (r *runs) leave(node int32, n int) {
	if n == 0 {
		return
	}
	for len(r.cuts) <= n {
		r.cuts = append(r.cuts, nil)
	}
	r.cuts[n] = append(r.cuts[n], node)
}

func (r *runs) contains(lo, hi rune) bool {
	i, found := slices.BinarySearchFunc(r.class, lo, func(x runeRange, c rune) int { return int(x.lo - c) })
	if !found {
		i--
	}
	return i >= 0 && r.class[i].hi >= hi
}

// Len returns the number of tokens.
func (v *Vocabulary) Len() int { return len(v.tokens) }

// MaskLen returns the number of words of a mask.
func (v *Vocabulary) MaskLen() int { return v.words }

// hazardous reports whether a token that ends a string begins another name or item with text.
func hazardous(rest []byte) bool {
	i := bytes.IndexByte(rest, '"')
	if i < 0 {
		return false
	}
	k := bytes.IndexByte(rest[i:], ',')
	if k < 0 {
		return false
	}
	j := bytes.IndexByte(rest[i+k:], '"')
	return j >= 0 && i+k+j+1 < len(rest)
}

type entry struct {
	bytes []byte
	ids   []int32
}

func newTrie(list []entry) *trie {
	t := &trie{}
	slices.SortFunc(list, func(a, b entry) int { return bytes.Compare(a.bytes, b.bytes) })
	var path []int32 // open nodes
	var prev []byte
	for _, e := range list {
		n := 0
		for n < len(prev) && n < len(e.bytes) && prev[n] == e.bytes[n] {
			n++
		}
		if len(prev) > 0 && n == len(e.bytes) && n == len(prev) {
			last := len(t.tokens) - 1
			t.tokens[last] = append(t.tokens[last], e.ids...)
			continue
		}
		for len(path) > n {
			t.skip[path[len(path)-1]] = int32(len(t.bytes))
			path = path[:len(path)-1]
		}
		for ; n < len(e.bytes); n++ {
			path = append(path, int32(len(t.bytes)))
			t.bytes = append(t.bytes, e.bytes[n])
			t.depth = append(t.depth, uint8(n))
			t.skip = append(t.skip, 0)
			t.tok = append(t.tok, -1)
		}
		t.tok[len(t.tok)-1] = int32(len(t.tokens))
		t.tokens = append(t.tokens, e.ids)
		prev = e.bytes
	}
	for _, i := range path {
		t.skip[i] = int32(len(t.bytes))
	}
	return t
}
