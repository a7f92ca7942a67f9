package native

import "github.com/hybridgroup/yzma/pkg/llama"

// Infill holds the tokens that mark the parts of a text with a gap; negative: the model lacks the
// token.
type Infill struct {
	Prefix, Suffix, Middle Token // before the text that precedes the gap, the text that follows it, and the filling
	Repo, File             Token // before the name of a repository, and of a file in it
}

// Infill returns the model's infill tokens.
func (m *Model) Infill() Infill {
	return Infill{
		Prefix: Token(llama.VocabFIMPre(m.vocab)), Suffix: Token(llama.VocabFIMSuf(m.vocab)), Middle: Token(llama.VocabFIMMid(m.vocab)),
		Repo: Token(llama.VocabFIMRep(m.vocab)), File: Token(llama.VocabFIMSep(m.vocab)),
	}
}

// Can reports whether the model was trained to fill gaps.
func (i Infill) Can() bool { return i.Prefix >= 0 && i.Suffix >= 0 && i.Middle >= 0 }
