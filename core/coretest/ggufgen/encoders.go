package main

import "fmt"

func (a arch) encoder() []kv {
	return []kv{
		{"feed_forward_length", uint32(a.ffn)},
		{"attention.head_count", uint32(a.heads)},
		{"attention.layer_norm_epsilon", float32(1e-5)},
		{"attention.causal", false},
		{"rope.freq_base", a.ropeBase},
	}
}

// norm adds a layer norm with its bias.
func (b *builder) norm(name string, n int) {
	b.fill(name+".weight", 1, n)
	b.small(name+".bias", n)
}

// biased adds a matrix with its bias.
func (b *builder) biased(name string, cols, rows int) {
	b.matrix(name+".weight", cols, rows)
	b.small(name+".bias", rows)
}

// classifier adds the layer that turns a text's vector into scores. With dense, a layer of the
// vector's size precedes it.
func (b *builder) classifier(a arch, dense bool) {
	if a.labels == 0 {
		return
	}
	if dense {
		b.random("cls.weight", typeF32, 0.1, a.embd, a.embd)
		b.small("cls.bias", a.embd)
		b.small("cls.output.bias", a.labels)
	}
	b.random("cls.output.weight", typeF32, 0.1, a.embd, a.labels)
}

func bert(b *builder, a arch) {
	b.small("token_types.weight", a.embd, tokenTypes)
	b.small("position_embd.weight", a.embd, a.ctx)
	b.norm("token_embd_norm", a.embd)
	b.blocks(a, func(_ int, p string) {
		for _, name := range []string{"attn_q", "attn_k", "attn_v", "attn_output"} {
			b.biased(p+name, a.embd, a.embd)
		}
		b.norm(p+"attn_output_norm", a.embd)
		b.biased(p+"ffn_up", a.embd, a.ffn)
		b.biased(p+"ffn_down", a.ffn, a.embd)
		b.norm(p+"layer_output_norm", a.embd)
	})
	b.classifier(a, true)
}

func nomicBERT(b *builder, a arch) {
	b.small("token_types.weight", a.embd, tokenTypes)
	b.norm("token_embd_norm", a.embd)
	b.blocks(a, func(_ int, p string) {
		b.matrix(p+"attn_qkv.weight", a.embd, 3*a.embd)
		b.matrix(p+"attn_output.weight", a.embd, a.embd)
		b.norm(p+"attn_output_norm", a.embd)
		b.matrix(p+"ffn_up.weight", a.embd, a.ffn)
		b.matrix(p+"ffn_gate.weight", a.embd, a.ffn)
		b.matrix(p+"ffn_down.weight", a.ffn, a.embd)
		b.norm(p+"layer_output_norm", a.embd)
	})
}

func jinaBERT(b *builder, a arch) {
	b.small("token_types.weight", a.embd, tokenTypes)
	b.norm("token_embd_norm", a.embd)
	b.blocks(a, func(_ int, p string) {
		for _, name := range []string{"attn_q", "attn_k", "attn_v", "attn_output"} {
			b.biased(p+name, a.embd, a.embd)
		}
		b.norm(p+"attn_output_norm", a.embd)
		b.matrix(p+"ffn_up.weight", a.embd, a.ffn)
		b.matrix(p+"ffn_gate.weight", a.embd, a.ffn)
		b.biased(p+"ffn_down", a.ffn, a.embd)
		b.norm(p+"layer_output_norm", a.embd)
	})
	if a.labels > 0 {
		b.random("cls.weight", typeF32, 0.1, a.embd, 1)
		b.small("cls.bias", 1)
	}
}

func (a arch) modernBERT() []kv {
	return append(a.encoder(), kv{"attention.sliding_window", uint32(a.window)}, kv{"attention.sliding_window_pattern", uint32(3)}, kv{"rope.freq_base_swa", a.ropeBase})
}

func modernBERT(b *builder, a arch) {
	b.fill("token_embd_norm.weight", 1, a.embd)
	b.blocks(a, func(l int, p string) {
		if l > 0 {
			b.fill(p+"attn_norm.weight", 1, a.embd)
		}
		b.matrix(p+"attn_qkv.weight", a.embd, 3*a.embd)
		b.matrix(p+"attn_output.weight", a.embd, a.embd)
		b.fill(p+"ffn_norm.weight", 1, a.embd)
		b.matrix(p+"ffn_up.weight", a.embd, 2*a.ffn)
		b.matrix(p+"ffn_down.weight", a.ffn, a.embd)
	})
	b.fill("output_norm.weight", 1, a.embd)
}

const t5Buckets = 32 // buckets of relative positions

func (a arch) t5() []kv {
	a.kvHeads = a.heads
	return append(a.decoder(), kv{"decoder_block_count", uint32(a.layers)}, kv{"decoder_start_token_id", uint32(1)}, kv{"attention.relative_buckets_count", uint32(t5Buckets)})
}

// t5 has an encoder and a decoder, neither with position embeddings.
func t5(b *builder, a arch) {
	attention := func(p string) {
		for _, name := range []string{"q", "k", "v", "o"} {
			b.matrix(p+name+".weight", a.embd, a.embd)
		}
	}
	for _, side := range []string{"enc", "dec"} {
		for l := range a.layers {
			p := fmt.Sprintf("%s.blk.%d.", side, l)
			b.fill(p+"attn_norm.weight", 1, a.embd)
			if l == 0 {
				b.small(p+"attn_rel_b.weight", a.heads, t5Buckets)
			}
			attention(p + "attn_")
			if side == "dec" {
				b.fill(p+"cross_attn_norm.weight", 1, a.embd)
				attention(p + "cross_attn_")
			}
			b.ffn(a, p)
		}
		b.fill(side+".output_norm.weight", 1, a.embd)
	}
	b.matrix("output.weight", a.embd, a.vocab)
}
