package batch

import (
	"cmp"
	"slices"
)

// Block hashes describe the token prefixes that the scheduler holds. A router uses them to find who
// has the beginning of a prompt, without being able to read it.

const (
	// BlockTokens is the number of tokens in a block.
	BlockTokens = 64
	// MostBlocks bounds the blocks of a text and the list that Blocks returns.
	MostBlocks = 512
)

// HashFunc returns the hash of a block that follows the block with the hash before. For the first
// block of a text, before is the hash of the adapters, computed for an empty block.
type HashFunc func(before uint64, adapters string, block []Token) uint64

// chain returns the hashes of the complete blocks of a text.
func (s *Scheduler) chain(text []Token, adapters string) []uint64 {
	if s.conf.Hash == nil {
		return nil
	}
	n := min(len(text)/BlockTokens, MostBlocks)
	out := make([]uint64, n)
	before := s.conf.Hash(0, adapters, nil)
	for i := range n {
		before = s.conf.Hash(before, "", text[i*BlockTokens:(i+1)*BlockTokens])
		out[i] = before
	}
	return out
}

// publish builds the list that Blocks returns, most recently used first.
func (s *Scheduler) publish() {
	if s.conf.Hash == nil {
		return
	}
	type holder struct {
		chain []uint64
		used  int64
	}
	var all []holder
	for _, x := range s.slots {
		if n := min(len(x.chain), len(x.held)/BlockTokens); n > 0 {
			all = append(all, holder{x.chain[:n], x.used})
		}
	}
	for _, e := range s.saved.list {
		all = append(all, holder{e.chain, e.used})
	}
	slices.SortStableFunc(all, func(a, b holder) int { return cmp.Compare(b.used, a.used) })
	var out []uint64
	seen := map[uint64]bool{}
	for _, h := range all {
		for _, b := range h.chain {
			if !seen[b] && len(out) < MostBlocks {
				seen[b] = true
				out = append(out, b)
			}
		}
	}
	s.blocks.Store(&out)
}

// Blocks returns the hashes of the blocks that the scheduler holds, at most MostBlocks; nil without
// a Config.Hash. Requests count once they have ended. The caller must not modify the list.
func (s *Scheduler) Blocks() []uint64 {
	if list := s.blocks.Load(); list != nil {
		return *list
	}
	return nil
}
