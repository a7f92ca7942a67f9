package grammar

import (
	"bytes"
	"slices"
	"sort"
	"unicode/utf8"
)

// Vocabulary is the tokens of a model, prepared for masks. It is safe for concurrent use.
type Vocabulary struct {
	tokens [][]byte
	eos    []int
	words  int // 64-bit words of a mask

	trie  *trie
	plain [][]uint64 // [n]: tokens of at most n characters that need no escape in a JSON string
	most  int        // characters of the longest such token, or before a special byte

	special []*trie // [n]: tokens whose first quote or backslash has n characters before it
	anyFrom *trie   // those with at least one character before it, whatever their number
	hazards []int   // tokens that end a string and begin the text of another one
}

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
	v := &Vocabulary{tokens: tokens, eos: eos, words: (len(tokens) + 63) / 64}
	all := make([]entry, 0, len(tokens))
	ends := make([]bool, len(tokens))
	for _, id := range eos {
		if id >= 0 && id < len(ends) {
			ends[id] = true
		}
	}
	var plain [][]int
	var special [][]entry
	for id, t := range tokens {
		if len(t) == 0 || len(t) > 255 || ends[id] {
			continue
		}
		all = append(all, entry{t, int32(id)})
		n, rest, ok := plainPrefix(t)
		switch {
		case !ok:
		case rest == len(t):
			for len(plain) <= n {
				plain = append(plain, nil)
			}
			plain[n] = append(plain[n], id)
		default:
			for len(special) <= n {
				special = append(special, nil)
			}
			special[n] = append(special[n], entry{t[rest:], int32(id)})
			if hazardous(t[rest:]) {
				v.hazards = append(v.hazards, id)
			}
		}
	}
	v.trie = newTrie(all)
	v.most = max(len(plain), len(special))
	mask := make([]uint64, v.words)
	for n := range v.most + 1 {
		if n < len(plain) {
			for _, id := range plain[n] {
				mask[id/64] |= 1 << (id % 64)
			}
		}
		v.plain = append(v.plain, slices.Clone(mask))
	}
	var from []entry
	for n, list := range special {
		v.special = append(v.special, newTrie(list))
		if n > 0 {
			from = append(from, list...)
		}
	}
	v.anyFrom = newTrie(from)
	return v
}

// Len returns the number of tokens.
func (v *Vocabulary) Len() int { return len(v.tokens) }

// MaskLen returns the number of words of a mask.
func (v *Vocabulary) MaskLen() int { return v.words }

// plainPrefix returns how many characters at the start of t stand for themselves in a JSON
// string, and their length. An incomplete character at the end counts. It reports false when t
// goes on with what cannot stand in a string at all.
func plainPrefix(t []byte) (chars, length int, ok bool) {
	for length < len(t) {
		b := t[length]
		switch {
		case b == '"' || b == '\\':
			return chars, length, true
		case b < 0x20:
			return chars, length, false
		}
		r, n := utf8.DecodeRune(t[length:])
		if r == utf8.RuneError && n == 1 {
			if !utf8.FullRune(t[length:]) {
				return chars + 1, len(t), true
			}
			return chars, length, false
		}
		length += n
		chars++
	}
	return chars, length, true
}

// hazardous reports whether a token that ends a string begins another one with text.
func hazardous(rest []byte) bool {
	i := bytes.IndexByte(rest, '"')
	if i < 0 {
		return false
	}
	j := bytes.IndexByte(rest[i+1:], '"')
	return j >= 0 && i+1+j+1 < len(rest)
}

type entry struct {
	bytes []byte
	id    int32
}

func newTrie(list []entry) *trie {
	t := &trie{}
	sort.Slice(list, func(i, j int) bool { return bytes.Compare(list[i].bytes, list[j].bytes) < 0 })
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
