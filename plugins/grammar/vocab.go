package grammar

import (
	"bytes"
	"sync"
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

	every *runs // for any characters of a JSON string

	mu       sync.Mutex // guards below
	runs     map[string]*runs
	asked    map[string]bool // classes requested so far
	branches map[string]*branches
}

// maxToken is the length of the longest token that a mask can hold.
const maxToken = 255

// NewVocabulary prepares the tokens of a model: tokens holds the bytes of each, empty for those
// without text, and eos the tokens that end a text. It keeps tokens. Tokens of more than 255 bytes
// never match.
func NewVocabulary(tokens [][]byte, eos ...int) *Vocabulary {
	v := &Vocabulary{tokens: tokens, eos: eos, words: (len(tokens) + 63) / 64, runs: map[string]*runs{}, asked: map[string]bool{}, branches: map[string]*branches{}}
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
	v.trie.measure()
	v.every = v.newRuns(anyChar, false)
	return v
}

func (v *Vocabulary) usable(id int) bool {
	n := len(v.tokens[id])
	return n > 0 && n <= maxToken && !v.ends[id]
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
