package main

import "fmt"

// adapterMeta returns the metadata of a LoRA adapter.
func adapterMeta(name string, rank int) []kv {
	return []kv{
		{"general.type", "adapter"},
		{"general.architecture", name},
		{"adapter.type", "lora"},
		{"adapter.lora.alpha", float32(rank)},
	}
}

// adapter adds the tensors of an adapter that changes every layer's attention projections.
func (b *builder) adapter(a arch, rank int) []tensor {
	b.blocks(a, func(_ int, p string) {
		for _, m := range []struct {
			name string
			rows int
		}{{"attn_q", a.embd}, {"attn_v", a.kvDim()}, {"attn_output", a.embd}} {
			b.random(fmt.Sprintf("%s%s.weight.lora_a", p, m.name), typeF32, 0.3, a.embd, rank)
			b.random(fmt.Sprintf("%s%s.weight.lora_b", p, m.name), typeF32, 0.3, rank, m.rows)
		}
	})
	return b.tensors
}
