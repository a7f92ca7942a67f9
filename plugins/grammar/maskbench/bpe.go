package main

import (
	"container/heap"
	"encoding/json"
	"os"
	"unicode"
	"unicode/utf8"
)

// bpe is the byte-level tokenizer of Llama 3.
type bpe struct {
	tokens [][]byte
	eos    int
	ids    map[string]int
	ranks  map[[2]string]int
}

func loadTokenizer(path string) (*bpe, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var file struct {
		Model struct {
			Vocab  map[string]int `json:"vocab"`
			Merges []string       `json:"merges"`
		} `json:"model"`
		Added []struct {
			ID      int    `json:"id"`
			Content string `json:"content"`
		} `json:"added_tokens"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, err
	}
	// The vocabulary represents each byte by a printable character.
	bytesOf := map[rune]byte{}
	next := rune(256)
	for b := range 256 {
		r := rune(b)
		if b < '!' || b > '~' && b < 0xA1 || b == 0xAD {
			r = next
			next++
		}
		bytesOf[r] = byte(b)
	}
	decode := func(s string) string {
		var out []byte
		for _, r := range s {
			out = append(out, bytesOf[r])
		}
		return string(out)
	}
	size := len(file.Model.Vocab)
	for _, a := range file.Added {
		size = max(size, a.ID+1)
	}
	t := &bpe{tokens: make([][]byte, size), ids: map[string]int{}, ranks: map[[2]string]int{}}
	for s, id := range file.Model.Vocab {
		d := decode(s)
		t.tokens[id] = []byte(d)
		t.ids[d] = id
	}
	for _, a := range file.Added {
		t.tokens[a.ID] = nil
		if a.Content == "<|eot_id|>" {
			t.eos = a.ID
		}
	}
	for i, m := range file.Model.Merges {
		for j := range m {
			if m[j] == ' ' {
				t.ranks[[2]string{decode(m[:j]), decode(m[j+1:])}] = i
				break
			}
		}
	}
	return t, nil
}

// encode returns the tokens of text.
func (t *bpe) encode(text []byte) []int {
	var out []int
	for len(text) > 0 {
		n := piece(text)
		out = append(out, t.merge(string(text[:n]))...)
		text = text[n:]
	}
	return out
}

// merge joins the bytes of a word, always the pair learned first. A word may be as long as a
// document, so pairs are kept in a heap.
func (t *bpe) merge(word string) []int {
	if id, ok := t.ids[word]; ok {
		return []int{id}
	}
	n := len(word)
	ends, before := make([]int, n), make([]int, n) // of the part that begins at an index; 0: none
	var pairs pairHeap
	push := func(at int) {
		if mid := ends[at]; mid < n {
			if r, ok := t.ranks[[2]string{word[at:mid], word[mid:ends[mid]]}]; ok {
				heap.Push(&pairs, pair{r, at, mid, ends[mid]})
			}
		}
	}
	for i := range n {
		ends[i], before[i] = i+1, i-1
	}
	for i := range n {
		push(i)
	}
	for len(pairs) > 0 {
		p := heap.Pop(&pairs).(pair)
		if ends[p.at] != p.mid || ends[p.mid] != p.end {
			continue // one of the two has been joined with another part
		}
		ends[p.at], ends[p.mid] = p.end, 0
		if p.end < n {
			before[p.end] = p.at
		}
		push(p.at)
		if before[p.at] >= 0 {
			push(before[p.at])
		}
	}
	var out []int
	for at := 0; at < n; at = ends[at] {
		out = append(out, t.ids[word[at:ends[at]]])
	}
	return out
}

// pair is two parts of a word that may be joined, from at to mid and from mid to end.
type pair struct{ rank, at, mid, end int }

// pairHeap orders pairs by rank, then from left to right.
type pairHeap []pair

func (h pairHeap) Len() int { return len(h) }

func (h pairHeap) Less(i, j int) bool {
	return h[i].rank < h[j].rank || h[i].rank == h[j].rank && h[i].at < h[j].at
}

func (h pairHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

func (h *pairHeap) Push(x any) { *h = append(*h, x.(pair)) }

func (h *pairHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// piece returns the length of the first piece, as Llama 3 splits text before merging bytes.
func piece(text []byte) int {
	r, n := utf8.DecodeRune(text)
	if r == '\'' {
		for _, s := range []string{"s", "t", "re", "ve", "m", "ll", "d"} {
			if len(text) > len(s) && equalFold(text[1:1+len(s)], s) {
				return 1 + len(s)
			}
		}
	}
	letters := func(i int) int {
		for i < len(text) {
			r, n := utf8.DecodeRune(text[i:])
			if !unicode.IsLetter(r) {
				break
			}
			i += n
		}
		return i
	}
	if unicode.IsLetter(r) {
		return letters(n)
	}
	if r != '\r' && r != '\n' && !unicode.IsNumber(r) {
		if end := letters(n); end > n {
			return end
		}
	}
	if unicode.IsNumber(r) {
		i := n
		for k := 1; k < 3 && i < len(text); k++ {
			r, n := utf8.DecodeRune(text[i:])
			if !unicode.IsNumber(r) {
				break
			}
			i += n
		}
		return i
	}
	i := 0
	if r == ' ' {
		i = 1
	}
	start := i
	for i < len(text) {
		r, n := utf8.DecodeRune(text[i:])
		if unicode.IsSpace(r) || unicode.IsLetter(r) || unicode.IsNumber(r) {
			break
		}
		i += n
	}
	if i > start {
		for i < len(text) && (text[i] == '\r' || text[i] == '\n') {
			i++
		}
		return i
	}
	return space(text)
}

// space returns the length of the first piece of a text that begins with whitespace.
func space(text []byte) int {
	i, lines, last := 0, 0, 0
	for i < len(text) {
		r, n := utf8.DecodeRune(text[i:])
		if !unicode.IsSpace(r) {
			break
		}
		last = i
		i += n
		if r == '\n' || r == '\r' {
			lines = i
		}
	}
	switch {
	case lines > 0:
		return lines
	case i < len(text) && last > 0:
		return last
	}
	return i
}

func equalFold(b []byte, s string) bool {
	for i := range b {
		if b[i]|0x20 != s[i] {
			return false
		}
	}
	return true
}
