package batch

import (
	"cmp"
	"slices"
)

// Block hashes: what the scheduler holds of texts, told so that a router can find who has the
// beginning of a prompt, and nobody can read it.

const (
	// BlockTokens is the tokens of a block.
	BlockTokens = 64
	// MostBlocks bounds the blocks that Blocks returns, and those of one text.
	MostBlocks = 512
)

// HashFunc returns the hash of a block behind the block whose hash is before, or behind a text's
// beginning: then before is that of the adapters' spelling, as a block of no tokens.
type HashFunc func(before uint64, adapters string, block []Token) uint64

// chain returns the hashes of the whole blocks of a text.
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

// publish makes the list that Blocks returns: what was used last comes first.
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

// Blocks returns the hashes of the blocks that the scheduler holds, MostBlocks at most; nil without
// a Config.Hash. A request counts when it has ended. The caller does not change the list.
func (s *Scheduler) Blocks() []uint64 {
	if list := s.blocks.Load(); list != nil {
		return *list
	}
	return nil
}
