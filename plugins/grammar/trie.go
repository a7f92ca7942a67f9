package grammar

import (
	"bytes"
	"slices"
)

// trie holds byte strings in depth-first order.
type trie struct {
	bytes  []byte
	depth  []uint8
	skip   []int32 // index after the node's subtree
	tokens [][]int32
	tok    []int32 // index into tokens of those that end here, or -1
	levels []uint8 // height of the subtree; nil: not measured
}

// measure fills in levels.
func (t *trie) measure() {
	t.levels = make([]uint8, len(t.bytes))
	var path [256]int
	for i, d := range t.depth {
		path[d] = i
		for up := range d {
			t.levels[path[up]] = max(t.levels[path[up]], d-up)
		}
	}
}

// add appends a node and returns its index. Its subtree extends until skip is set.
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

// merge returns the trie of the byte strings that begin at one of the nodes.
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

// through returns the trie of the byte strings that pass through one of the nodes.
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
	end := 0 // end of a subtree that is copied as a whole
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

// close ends the subtrees of the last node and of its ancestors, down to a depth. path maps depths
// to nodes.
func (t *trie) close(path *[256]int, depth int) {
	if len(t.bytes) == 0 {
		return
	}
	for d := int(t.depth[len(t.depth)-1]); d >= depth; d-- {
		t.skip[path[d]] = int32(len(t.bytes))
	}
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
