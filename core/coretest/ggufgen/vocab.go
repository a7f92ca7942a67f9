package main

import (
	"fmt"
	"slices"
)

// vocabulary is the part of a model's metadata that a tokenizer reads.
type vocabulary struct {
	size int
	meta []kv
}

// The types of tokens.
const (
	normalToken  = 1
	unknownToken = 2
	controlToken = 3
	byteToken    = 6
)

// markers are ChatML's; every vocabulary contains them.
var markers = []string{"<|im_start|>", "<|im_end|>"}

// gapMarkers are the infill tokens, as in Qwen's models for code.
var gapMarkers = []string{"<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>"}

// addGaps replaces the last pieces before the markers with gapMarkers.
func (v vocabulary) addGaps() error {
	var tokens []string
	var types []int32
	for _, e := range v.meta {
		switch e.key {
		case "tokenizer.ggml.model":
			if e.val != "llama" { // in other vocabularies, merges refer to the tokens
				return fmt.Errorf("-infill is for spm vocabularies")
			}
		case "tokenizer.ggml.tokens":
			tokens, _ = e.val.([]string)
		case "tokenizer.ggml.token_type":
			types, _ = e.val.([]int32)
		}
	}
	first := len(tokens) - len(markers) - len(gapMarkers)
	for i, s := range gapMarkers {
		tokens[first+i], types[first+i] = s, controlToken
	}
	return nil
}

// vocabularyOf returns a vocabulary of n tokens of a kind: "spm" (SentencePiece, llama), "bpe"
// (GPT-2 with the pre-tokenizer pre), "wpm" (WordPiece, BERT) or "ugm" (Unigram, T5 and
// XLM-RoBERTa).
func vocabularyOf(kind, pre string, n int) (vocabulary, error) {
	switch kind {
	case "spm":
		tokens, scores, types := sentencePieces(n)
		return vocabulary{n, []kv{
			{"tokenizer.ggml.model", "llama"},
			{"tokenizer.ggml.tokens", tokens},
			{"tokenizer.ggml.scores", scores},
			{"tokenizer.ggml.token_type", types},
			{"tokenizer.ggml.unknown_token_id", uint32(0)},
			{"tokenizer.ggml.bos_token_id", uint32(1)},
			{"tokenizer.ggml.eos_token_id", uint32(2)},
			{"tokenizer.ggml.eot_token_id", uint32(n - 1)},
			{"tokenizer.ggml.add_bos_token", true},
			{"tokenizer.ggml.add_eos_token", false},
		}}, nil
	case "bpe":
		tokens, merges, types := bytePairs(n)
		return vocabulary{n, []kv{
			{"tokenizer.ggml.model", "gpt2"},
			{"tokenizer.ggml.pre", pre},
			{"tokenizer.ggml.tokens", tokens},
			{"tokenizer.ggml.token_type", types},
			{"tokenizer.ggml.merges", merges},
			{"tokenizer.ggml.bos_token_id", uint32(n - 3)},
			{"tokenizer.ggml.eos_token_id", uint32(n - 1)},
			{"tokenizer.ggml.eot_token_id", uint32(n - 1)},
			{"tokenizer.ggml.add_bos_token", false},
		}}, nil
	case "wpm":
		tokens, types := wordPieces(n)
		return vocabulary{n, []kv{
			{"tokenizer.ggml.model", "bert"},
			{"tokenizer.ggml.pre", "jina-v2-en"},
			{"tokenizer.ggml.tokens", tokens},
			{"tokenizer.ggml.token_type", types},
			{"tokenizer.ggml.token_type_count", uint32(tokenTypes)},
			{"tokenizer.ggml.padding_token_id", uint32(0)},
			{"tokenizer.ggml.unknown_token_id", uint32(1)},
			{"tokenizer.ggml.cls_token_id", uint32(2)},
			{"tokenizer.ggml.bos_token_id", uint32(2)},
			{"tokenizer.ggml.seperator_token_id", uint32(3)},
			{"tokenizer.ggml.eos_token_id", uint32(3)},
			{"tokenizer.ggml.mask_token_id", uint32(4)},
			{"tokenizer.ggml.add_bos_token", true},
			{"tokenizer.ggml.add_sep_token", true},
		}}, nil
	case "ugm":
		tokens, scores, types := unigrams(n)
		return vocabulary{n, []kv{
			{"tokenizer.ggml.model", "t5"},
			{"tokenizer.ggml.pre", "default"},
			{"tokenizer.ggml.tokens", tokens},
			{"tokenizer.ggml.scores", scores},
			{"tokenizer.ggml.token_type", types},
			{"tokenizer.ggml.token_type_count", uint32(tokenTypes)},
			{"tokenizer.ggml.bos_token_id", uint32(0)},
			{"tokenizer.ggml.padding_token_id", uint32(1)},
			{"tokenizer.ggml.eos_token_id", uint32(2)},
			{"tokenizer.ggml.seperator_token_id", uint32(2)},
			{"tokenizer.ggml.unknown_token_id", uint32(3)},
			{"tokenizer.ggml.add_space_prefix", true},
			{"tokenizer.ggml.remove_extra_whitespaces", true},
			{"tokenizer.ggml.add_bos_token", true},
			{"tokenizer.ggml.add_eos_token", true},
			{"tokenizer.ggml.add_sep_token", false},
		}}, nil
	}
	return vocabulary{}, fmt.Errorf("unknown -tokenizer %q", kind)
}

const tokenTypes = 2 // BERT's: the first and the second text

// grams calls add with letter n-grams, shorter ones first, until it returns false.
func grams(add func(gram string) bool) {
	const letters = "etaoinshrdlcumwfgypbvkjxqz"
	for list := []string{""}; ; {
		var next []string
		for _, g := range list {
			for _, c := range letters {
				next = append(next, g+string(c))
				if !add(g + string(c)) {
					return
				}
			}
		}
		list = next
	}
}

// bytePairs builds a vocabulary like GPT-2's: the 256 bytes in its own alphabet, then n-grams with
// and without a leading space, each merged from a shorter one, and the markers.
func bytePairs(n int) (tokens, merges []string, types []int32) {
	for i := range 256 {
		tokens = append(tokens, byteLetter(byte(i)))
	}
	space := byteLetter(' ')
	grams(func(g string) bool {
		for _, whole := range []string{g, space + g} {
			if r := []rune(whole); len(r) > 1 && len(tokens) < n-3 {
				merges = append(merges, string(r[:len(r)-1])+" "+string(r[len(r)-1:]))
				tokens = append(tokens, whole)
			}
		}
		return len(tokens) < n-3
	})
	types = slices.Repeat([]int32{normalToken}, len(tokens))
	for _, s := range append([]string{"<|endoftext|>"}, markers...) {
		tokens, types = append(tokens, s), append(types, controlToken)
	}
	return tokens, merges, types
}

// byteLetter returns GPT-2's letter for a byte: the byte itself if it is printable, else a
// character beyond 255.
func byteLetter(b byte) string {
	hidden := func(b int) bool { return b < '!' || b > '~' && b < 0xa1 || b == 0xad }
	if !hidden(int(b)) {
		return string(rune(b))
	}
	n := 0
	for i := range int(b) {
		if hidden(i) {
			n++
		}
	}
	return string(rune(256 + n))
}

// wordPieces builds a vocabulary like BERT's, in llama.cpp's form: pieces that begin a word have a
// mark, pieces that continue one do not.
func wordPieces(n int) (tokens []string, types []int32) {
	for _, s := range append([]string{"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}, markers...) {
		tokens, types = append(tokens, s), append(types, controlToken)
	}
	types[1] = unknownToken
	add := func(s string) bool {
		if len(tokens) < n {
			tokens, types = append(tokens, s), append(types, normalToken)
		}
		return len(tokens) < n
	}
	for c := '!'; c <= '~'; c++ {
		if c < 'A' || c > 'z' { // its normalizer lower-cases letters
			add("\u2581" + string(c))
			add(string(c))
		}
	}
	grams(func(g string) bool { return add("\u2581"+g) && add(g) })
	return tokens, types
}

// unigrams builds a vocabulary like XLM-RoBERTa's.
func unigrams(n int) (tokens []string, scores []float32, types []int32) {
	for i, s := range append([]string{"<s>", "<pad>", "</s>", "<unk>"}, markers...) {
		tokens, scores, types = append(tokens, s), append(scores, 0), append(types, controlToken)
		if i == 3 {
			types[i] = unknownToken
		}
	}
	add := func(s string) bool {
		if len(tokens) < n {
			tokens, scores, types = append(tokens, s), append(scores, -float32(len(tokens))/64), append(types, normalToken)
		}
		return len(tokens) < n
	}
	add("\u2581")
	for c := '!'; c <= '~'; c++ {
		if c < 'a' || c > 'z' {
			add(string(c))
		}
	}
	grams(func(g string) bool { return add("\u2581"+g) && add(g) })
	return tokens, scores, types
}

// sentencePieces builds a SentencePiece-like vocabulary of exactly n pieces: specials, the 256
// bytes, printable characters, then letter n-grams with and without a leading space. Every n-gram's
// prefix precedes it, so that the merge procedure can reach each piece. The last two are the ChatML
// markers.
func sentencePieces(n int) (tokens []string, scores []float32, types []int32) {
	seen := map[string]bool{}
	add := func(s string, typ int32) bool {
		if len(tokens) >= n-2 || seen[s] {
			return len(tokens) < n-2
		}
		seen[s] = true
		score := float32(0)
		if typ == 1 {
			score = -float32(len(tokens) - 259)
		}
		tokens, scores, types = append(tokens, s), append(scores, score), append(types, typ)
		return true
	}
	add("<unk>", 2)
	add("<s>", 3)
	add("</s>", 3)
	for i := range 256 {
		add(fmt.Sprintf("<0x%02X>", i), 6)
	}
	add("\u2581", 1)
	for c := '!'; c <= '~'; c++ {
		add(string(c), 1)
	}
	const letters = "etaoinshrdlcumwfgypbvkjxqz"
	grams := []string{""}
	for len(tokens) < n-2 {
		var next []string
		for _, g := range grams {
			for _, c := range letters {
				next = append(next, g+string(c))
			}
		}
		for _, g := range next {
			add("\u2581"+g, 1)
			if !add(g, 1) {
				break
			}
		}
		grams = next
	}
	for _, s := range []string{"<|im_start|>", "<|im_end|>"} {
		tokens, scores, types = append(tokens, s), append(scores, 0), append(types, 3)
	}
	return tokens, scores, types
}
