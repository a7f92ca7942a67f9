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

	mu    sync.Mutex // guards runs
	runs  map[string]*runs
	every *runs // of any characters
}

// runs are the tokens of a vocabulary, sorted by how long they stay within a class of characters,
// all of which stand for themselves in a JSON string.
type runs struct {
	class []runeRange
	all   []uint64  // tokens that stay within it
	size  [][]int32 // [n]: those of n characters
	later *trie     // what tokens go on with that begin within the class and leave it

	mu    sync.Mutex // guards below
	exits []*trie    // [n]: those of later with n characters of the class before; nil until needed
	lists [][]entry
	whole *trie // the tokens of lists as they are; nil until needed
	ascii [utf8.RuneSelf]bool
}

// leavers returns the tokens that begin within the class and leave it.
func (r *runs) leavers(v *Vocabulary) *trie {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.whole == nil {
		var list []entry
		for _, l := range r.lists {
			for _, e := range l {
				list = append(list, entry{v.tokens[e.id], e.id})
			}
		}
		r.whole = newTrie(list)
	}
	return r.whole
}

// exit returns what tokens go on with after n characters of the class, n > 0.
func (r *runs) exit(n int) *trie {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exits[n] == nil {
		r.exits[n] = newTrie(r.lists[n])
	}
	return r.exits[n]
}

const maxRuns = 32

// trie holds byte strings in depth-first order.
type trie struct {
	bytes  []byte
	depth  []uint8
	skip   []int32 // index behind the node's subtree
	tokens [][]int32
	tok    []int32 // index into tokens of those that end here, or -1
}

// NewVocabulary prepares the tokens of a model: the bytes of each token by its number, empty for
// those that stand for no text, and the numbers of those that end a text.
func NewVocabulary(tokens [][]byte, eos ...int) *Vocabulary {
	v := &Vocabulary{tokens: tokens, eos: eos, words: (len(tokens) + 63) / 64, runs: map[string]*runs{}}
	v.ends = make([]bool, len(tokens))
	for _, id := range eos {
		if id >= 0 && id < len(tokens) {
			v.ends[id] = true
		}
	}
	all := make([]entry, 0, len(tokens))
	var hazards []entry
	for id, t := range tokens {
		if !v.usable(id) {
			continue
		}
		v.longest = max(v.longest, len(t))
		all = append(all, entry{t, int32(id)})
		if hazardous(t) {
			hazards = append(hazards, entry{t, int32(id)})
		}
	}
	v.trie, v.hazards = newTrie(all), newTrie(hazards)
	v.every = v.newRuns([]runeRange{{0, maxRune}})
	return v
}

func (v *Vocabulary) usable(id int) bool {
	n := len(v.tokens[id])
	return n > 0 && n <= 255 && !v.ends[id]
}

// runsOf returns the runs of a class, computed once.
func (v *Vocabulary) runsOf(class []runeRange) *runs {
	if len(class) == 1 && class[0] == (runeRange{0, maxRune}) {
		return v.every
	}
	key := fmt.Sprint(class)
	v.mu.Lock()
	defer v.mu.Unlock()
	r := v.runs[key]
	if r == nil {
		if len(v.runs) >= maxRuns {
			clear(v.runs)
		}
		r = v.newRuns(class)
		v.runs[key] = r
	}
	return r
}

func (v *Vocabulary) newRuns(class []runeRange) *runs {
	r := &runs{class: class, all: make([]uint64, v.words)}
	for b := range r.ascii {
		r.ascii[b] = b >= 0x20 && b != '"' && b != '\\' && r.contains(rune(b), rune(b))
	}
	var later []entry
	for id, t := range v.tokens {
		if !v.usable(id) {
			continue
		}
		n, rest, ok := r.prefix(t)
		switch {
		case !ok:
		case rest == len(t):
			for len(r.size) <= n {
				r.size = append(r.size, nil)
			}
			r.size[n] = append(r.size[n], int32(id))
			r.all[id/64] |= 1 << (id % 64)
		case n > 0:
			for len(r.lists) <= n {
				r.lists = append(r.lists, nil)
			}
			r.lists[n] = append(r.lists[n], entry{t[rest:], int32(id)})
			later = append(later, entry{t[rest:], int32(id)})
		}
	}
	r.exits = make([]*trie, len(r.lists))
	r.later = newTrie(later)
	return r
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

// prefix returns how many characters of the class at the start of t stand for themselves in a JSON
// string, and their length. An incomplete character at the end counts, if the class holds all
// characters with its first byte. It reports false when t cannot stand in a string at all.
func (r *runs) prefix(t []byte) (chars, length int, ok bool) {
	for length < len(t) {
		b := t[length]
		if b < utf8.RuneSelf {
			if !r.ascii[b] {
				return chars, length, b >= 0x20
			}
			length++
			chars++
			continue
		}
		c, n := utf8.DecodeRune(t[length:])
		if c == utf8.RuneError && n == 1 {
			if utf8.FullRune(t[length:]) {
				return chars, length, false
			}
			if r.contains(span(b)) {
				return chars + 1, len(t), true
			}
			return chars, length, true
		}
		if !r.contains(c, c) {
			return chars, length, true
		}
		length += n
		chars++
	}
	return chars, length, true
}

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
	id    int32
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
			t.tokens[last] = append(t.tokens[last], e.id)
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
		t.tokens = append(t.tokens, []int32{e.id})
		prev = e.bytes
	}
	for _, i := range path {
		t.skip[i] = int32(len(t.bytes))
	}
	return t
}
