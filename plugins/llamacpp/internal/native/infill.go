package native

import "github.com/hybridgroup/yzma/pkg/llama"

// Infill are the tokens around the parts of a text with a gap; negative: the model has none.
type Infill struct {
	Prefix, Suffix, Middle Token // before what stands before the gap, behind it, and in it
	Repo, File             Token // before the name of a repository, and of a file in it
}

// Infill returns the tokens of a text with a gap.
func (m *Model) Infill() Infill {
	return Infill{
		Prefix: Token(llama.VocabFIMPre(m.vocab)), Suffix: Token(llama.VocabFIMSuf(m.vocab)), Middle: Token(llama.VocabFIMMid(m.vocab)),
		Repo: Token(llama.VocabFIMRep(m.vocab)), File: Token(llama.VocabFIMSep(m.vocab)),
	}
}

// Can reports whether the model was trained to fill gaps.
func (i Infill) Can() bool { return i.Prefix >= 0 && i.Suffix >= 0 && i.Middle >= 0 }
