package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
)

const userToken = 4 // matched in a text before all other tokens, and shown

// tokenizerFile is the part of a tokenizer.json that vocabularyFrom reads.
type tokenizerFile struct {
	AddedTokens []struct {
		ID      int    `json:"id"`
		Content string `json:"content"`
		Special bool   `json:"special"`
	} `json:"added_tokens"`
	Model struct {
		Type         string            `json:"type"`
		Vocab        map[string]int    `json:"vocab"`
		Merges       []json.RawMessage `json:"merges"` // "a b", or ["a", "b"]
		ByteFallback bool              `json:"byte_fallback"`
	} `json:"model"`
}

// vocabularyFrom reads the vocabulary of a published tokenizer.json with byte pairs, or with pieces
// and a token for each byte, in the form that a conversion to GGUF writes.
func vocabularyFrom(path, pre string) (vocabulary, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return vocabulary{}, err
	}
	var f tokenizerFile
	if err := json.Unmarshal(text, &f); err != nil {
		return vocabulary{}, fmt.Errorf("%s: %w", path, err)
	}
	if f.Model.Type != "BPE" {
		return vocabulary{}, fmt.Errorf("%s has a vocabulary of the type %q, and only BPE is read", path, f.Model.Type)
	}
	n := 0
	for _, id := range f.Model.Vocab {
		n = max(n, id+1)
	}
	for _, t := range f.AddedTokens {
		n = max(n, t.ID+1)
	}
	tokens, types := make([]string, n), slices.Repeat([]int32{normalToken}, n)
	for text, id := range f.Model.Vocab {
		tokens[id] = text
		if f.Model.ByteFallback && len(text) == len("<0x00>") && strings.HasPrefix(text, "<0x") {
			types[id] = byteToken
		}
	}
	special := map[string]int{}
	for _, t := range f.AddedTokens {
		tokens[t.ID], types[t.ID] = t.Content, userToken
		if t.Special {
			types[t.ID] = controlToken
			special[t.Content] = t.ID
		}
	}
	for id, text := range tokens {
		if text == "" { // conversions fill gaps
			tokens[id], types[id] = fmt.Sprintf("[PAD%d]", id), userToken
		}
	}
	meta := []kv{{"tokenizer.ggml.tokens", tokens}, {"tokenizer.ggml.token_type", types}}
	first := func(names ...string) (id uint32, ok bool) {
		for _, name := range names {
			if id, ok := special[name]; ok {
				return uint32(id), true
			}
		}
		return 0, false
	}
	begin, begins := first("<s>", "<bos>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>")
	if begins {
		meta = append(meta, kv{"tokenizer.ggml.bos_token_id", begin})
	}
	if end, ok := first("</s>", "<eos>", "<|eot_id|>", "<|im_end|>", "<｜end▁of▁sentence｜>", "<|endoftext|>"); ok {
		meta = append(meta, kv{"tokenizer.ggml.eos_token_id", end})
	}
	meta = append(meta, kv{"tokenizer.ggml.add_bos_token", begins})
	if f.Model.ByteFallback {
		scores := make([]float32, n)
		for id := range scores {
			scores[id] = -float32(id) // published vocabularies are sorted by score
		}
		if id, ok := first("<unk>"); ok {
			types[id] = unknownToken
			meta = append(meta, kv{"tokenizer.ggml.unknown_token_id", id})
		}
		return vocabulary{n, append(meta, kv{"tokenizer.ggml.model", "llama"}, kv{"tokenizer.ggml.scores", scores})}, nil
	}
	merges := make([]string, len(f.Model.Merges))
	for i, m := range f.Model.Merges {
		var pair []string
		if json.Unmarshal(m, &merges[i]) == nil {
			continue
		}
		if err := json.Unmarshal(m, &pair); err != nil || len(pair) != 2 {
			return vocabulary{}, fmt.Errorf("%s: merge %d is not a pair", path, i)
		}
		merges[i] = pair[0] + " " + pair[1]
	}
	return vocabulary{n, append(meta, kv{"tokenizer.ggml.model", "gpt2"}, kv{"tokenizer.ggml.pre", pre}, kv{"tokenizer.ggml.merges", merges})}, nil
}
