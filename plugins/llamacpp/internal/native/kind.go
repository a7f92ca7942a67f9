package native

import (
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/hybridgroup/yzma/pkg/llama"

	"github.com/rbee-project/rbee/plugins/sdk"
)

// readers lists the architectures without a cache in the engine: their models cannot generate.
var readers = []string{
	"bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe", "t5encoder",
}

// Reads reports whether the model cannot generate: it only computes vectors or scores of texts.
func (m *Model) Reads() bool {
	if m.encodes() {
		return true
	}
	arch, _ := m.meta("general.architecture")
	causal, _ := m.meta(arch + ".attention.causal")
	return slices.Contains(readers, arch) || causal == "false"
}

// encodes reports whether the engine treats the model as an encoder.
func (m *Model) encodes() bool {
	return llama.ModelHasEncoder(m.handle) && !llama.ModelHasDecoder(m.handle)
}

func (m *Model) meta(key string) (string, bool) { return llama.ModelMetaValStr(m.handle, key) }

// Check rejects a model that the worker cannot serve, and one with an incomplete vocabulary, on
// which the engine would assert or throw and end the process. Errors: sdk.ErrUnsupported,
// sdk.ErrInvalid.
func (m *Model) Check() error {
	arch, _ := m.meta("general.architecture")
	switch {
	case llama.ModelHasEncoder(m.handle) && llama.ModelHasDecoder(m.handle):
		err := fmt.Errorf("load model: a model of the architecture %s has an encoder and a decoder, and this worker serves models that have one of the two: %w", arch, sdk.ErrUnsupported)
		return sdk.WithHint(err, "Serve a model that has only one of the two.")
	case llama.ModelIsDiffusion(m.handle):
		return fmt.Errorf("load model: a model of the architecture %s generates by diffusion, which this worker does not support: %w", arch, sdk.ErrUnsupported)
	}
	if lack := m.lacks(); lack != "" {
		return sdk.WithHint(fmt.Errorf("load model: its vocabulary %s: %w", lack, sdk.ErrInvalid), "The file is damaged or was converted wrongly; take another one.")
	}
	return nil
}

// lacks describes a missing part of the vocabulary that would make the engine end the process;
// empty: complete.
func (m *Model) lacks() string {
	kind := llama.GetVocabType(m.vocab)
	if kind == llama.VocabTypeNone || m.VocabSize() == 0 {
		return "is missing"
	}
	pieces := kind == llama.VocabTypeWPM // begins and ends all texts
	for _, x := range []struct {
		name   string
		token  llama.Token
		wanted bool
	}{
		{"bos_token_id", llama.VocabBOS(m.vocab), pieces || llama.VocabGetAddBOS(m.vocab)},
		{"eos_token_id", llama.VocabEOS(m.vocab), llama.VocabGetAddEOS(m.vocab)},
		{"seperator_token_id", llama.VocabSEP(m.vocab), pieces || llama.VocabGetAddSEP(m.vocab)}, //nolint:misspell // as GGUF spells it
	} {
		switch {
		case int(x.token) >= m.VocabSize():
			return fmt.Sprintf("has %d tokens, and tokenizer.ggml.%s is %d", m.VocabSize(), x.name, x.token)
		case x.token < 0 && x.wanted:
			return "wants a tokenizer.ggml." + x.name + " that is not there"
		}
	}
	if kind == llama.VocabTypeSPM {
		if b, ok := missingByte(func(yield func(string) bool) {
			for t := range m.VocabSize() {
				if !yield(m.Text(Token(t))) {
					return
				}
			}
		}); ok {
			return fmt.Sprintf("has no token for the byte %#02x", b)
		}
	}
	// Text without a token becomes the unknown token, whose id the engine does not expose.
	for _, t := range m.Tokenize("\U000F0000", false, false) {
		if t < 0 || int(t) >= m.VocabSize() {
			return fmt.Sprintf("has %d tokens, and tokenizer.ggml.unknown_token_id is %d", m.VocabSize(), t)
		}
	}
	return ""
}

// missingByte returns a byte that a SentencePiece vocabulary cannot represent, neither as <0xNN>
// nor as itself.
func missingByte(texts iter.Seq[string]) (byte, bool) {
	var seen [256]bool
	missing := len(seen)
	for text := range texts {
		var b byte
		if len(text) == 1 {
			b = text[0]
		} else {
			digits, ok := strings.CutPrefix(text, "<0x")
			digits, closed := strings.CutSuffix(digits, ">")
			n, err := strconv.ParseUint(digits, 16, 8)
			if !ok || !closed || err != nil || len(digits) != 2 || digits != strings.ToUpper(digits) {
				continue
			}
			b = byte(n)
		}
		if !seen[b] {
			seen[b] = true
			if missing--; missing == 0 {
				return 0, false
			}
		}
	}
	return byte(slices.Index(seen[:], false)), true
}

// CutsByExpression reports whether the engine splits texts with regular expressions before it
// tokenizes them.
func (m *Model) CutsByExpression() bool { return llama.GetVocabType(m.vocab) == llama.VocabTypeBPE }

// AddsEOS reports whether the model expects EOS after every text.
func (m *Model) AddsEOS() bool { return llama.VocabGetAddEOS(m.vocab) }

// AddsSEP reports whether the model expects SEP after every text.
func (m *Model) AddsSEP() bool { return llama.VocabGetAddSEP(m.vocab) }

// SEP returns the separator of two texts, or a negative number.
func (m *Model) SEP() Token { return Token(llama.VocabSEP(m.vocab)) }

// RankTemplate returns the template that joins a query and a document for a ranking model, with
// {query} and {document}, or the empty string.
func (m *Model) RankTemplate() string { return llama.ModelChatTemplate(m.handle, "rerank") }
