package main

import "fmt"

// family is an architecture: the metadata of its models, and their tensors besides the token
// embeddings.
type family struct {
	meta      func(a arch) []kv // keys lack the prefix with the architecture's name
	tensors   func(b *builder, a arch)
	tokenizer string // its usual kind of vocabulary
	reads     bool   // it generates no text
	experts   int    // its own number of experts
}

var families = map[string]family{
	"llama":           {meta: arch.decoder, tensors: llama, tokenizer: "spm"},
	"qwen2":           {meta: arch.decoder, tensors: qwen2, tokenizer: "bpe"},
	"qwen3":           {meta: arch.decoder, tensors: qwen3, tokenizer: "bpe"},
	"qwen3moe":        {meta: arch.decoder, tensors: qwen3, tokenizer: "bpe", experts: 8},
	"gemma3":          {meta: arch.windowed, tensors: gemma3, tokenizer: "spm"},
	"mamba":           {meta: arch.recurrent, tensors: mamba, tokenizer: "spm"},
	"granitehybrid":   {meta: arch.graniteHybrid, tensors: graniteHybrid, tokenizer: "bpe"},
	"lfm2":            {meta: arch.lfm2, tensors: lfm2, tokenizer: "bpe"},
	"bert":            {meta: arch.encoder, tensors: bert, tokenizer: "wpm", reads: true},
	"nomic-bert":      {meta: arch.encoder, tensors: nomicBERT, tokenizer: "wpm", reads: true},
	"jina-bert-v2":    {meta: arch.encoder, tensors: jinaBERT, tokenizer: "wpm", reads: true},
	"modern-bert":     {meta: arch.modernBERT, tensors: modernBERT, tokenizer: "bpe", reads: true},
	"gemma-embedding": {meta: arch.windowed, tensors: gemma3, tokenizer: "spm", reads: true},
	"t5":              {meta: arch.t5, tensors: t5, tokenizer: "ugm"},
}

// common returns the metadata that all architectures have.
func (a arch) common() []kv {
	return []kv{
		{"context_length", uint32(a.ctx)},
		{"embedding_length", uint32(a.embd)},
		{"block_count", uint32(a.layers)},
		{"vocab_size", uint32(a.vocab)},
		{"attention.layer_norm_rms_epsilon", float32(1e-5)},
	}
}

func (a arch) decoder() []kv {
	list := []kv{
		{"feed_forward_length", uint32(a.ffn)},
		{"attention.head_count", uint32(a.heads)},
		{"attention.head_count_kv", uint32(a.kvHeads)},
		{"attention.key_length", uint32(a.head())},
		{"attention.value_length", uint32(a.head())},
		{"rope.dimension_count", uint32(a.head())},
		{"rope.freq_base", a.ropeBase},
	}
	if a.experts > 0 {
		list = append(list, kv{"expert_count", uint32(a.experts)}, kv{"expert_used_count", uint32(a.used)}, kv{"expert_feed_forward_length", uint32(a.ffn)})
	}
	return list
}

func (a arch) windowed() []kv {
	return append(a.decoder(), kv{"attention.sliding_window", uint32(a.window)})
}

// ffn adds a feed-forward layer with a gate, dense or with experts.
func (b *builder) ffn(a arch, p string) {
	b.fill(p+"ffn_norm.weight", 1, a.embd)
	if a.experts > 0 {
		b.matrix(p+"ffn_gate_inp.weight", a.embd, a.experts)
		b.matrix(p+"ffn_gate_exps.weight", a.embd, a.ffn, a.experts)
		b.matrix(p+"ffn_down_exps.weight", a.ffn, a.embd, a.experts)
		b.matrix(p+"ffn_up_exps.weight", a.embd, a.ffn, a.experts)
		return
	}
	b.matrix(p+"ffn_gate.weight", a.embd, a.ffn)
	b.matrix(p+"ffn_down.weight", a.ffn, a.embd)
	b.matrix(p+"ffn_up.weight", a.embd, a.ffn)
}

func (b *builder) attention(a arch, p string) {
	b.matrix(p+"attn_q.weight", a.embd, a.embd)
	b.matrix(p+"attn_k.weight", a.embd, a.kvDim())
	b.matrix(p+"attn_v.weight", a.embd, a.kvDim())
	b.matrix(p+"attn_output.weight", a.embd, a.embd)
}

// headNorms adds the norms of queries and keys.
func (b *builder) headNorms(a arch, p string) {
	b.fill(p+"attn_q_norm.weight", 1, a.head())
	b.fill(p+"attn_k_norm.weight", 1, a.head())
}

// blocks adds layers, each with its prefix.
func (b *builder) blocks(a arch, layer func(l int, p string)) {
	for l := range a.layers {
		layer(l, fmt.Sprintf("blk.%d.", l))
	}
}

func llama(b *builder, a arch) {
	b.blocks(a, func(_ int, p string) {
		b.fill(p+"attn_norm.weight", 1, a.embd)
		b.attention(a, p)
		b.ffn(a, p)
	})
	b.fill("output_norm.weight", 1, a.embd)
}

func qwen2(b *builder, a arch) {
	llama(b, a)
	b.blocks(a, func(_ int, p string) {
		b.small(p+"attn_q.bias", a.embd)
		b.small(p+"attn_k.bias", a.kvDim())
		b.small(p+"attn_v.bias", a.kvDim())
	})
	b.classifier(a, false)
}

func qwen3(b *builder, a arch) {
	llama(b, a)
	b.blocks(a, func(_ int, p string) { b.headNorms(a, p) })
	b.classifier(a, false)
}

func gemma3(b *builder, a arch) {
	llama(b, a)
	b.blocks(a, func(_ int, p string) {
		b.headNorms(a, p)
		b.fill(p+"post_attention_norm.weight", 1, a.embd)
		b.fill(p+"post_ffw_norm.weight", 1, a.embd)
	})
}

// Parameters of mamba's state space layers.
const (
	ssmConv  = 4
	ssmState = 16
)

func (a arch) ssmInner() int { return 2 * a.embd }
func (a arch) ssmRank() int  { return max(1, a.embd/16) }

func (a arch) recurrent() []kv {
	return []kv{
		{"feed_forward_length", uint32(0)},
		{"attention.head_count", uint32(0)},
		{"ssm.conv_kernel", uint32(ssmConv)},
		{"ssm.inner_size", uint32(a.ssmInner())},
		{"ssm.state_size", uint32(ssmState)},
		{"ssm.time_step_rank", uint32(a.ssmRank())},
	}
}

func mamba(b *builder, a arch) {
	inner, rank := a.ssmInner(), a.ssmRank()
	b.blocks(a, func(_ int, p string) {
		b.fill(p+"attn_norm.weight", 1, a.embd)
		b.matrix(p+"ssm_in.weight", a.embd, 2*inner)
		b.fill(p+"ssm_conv1d.weight", 0.5, ssmConv, inner)
		b.fill(p+"ssm_conv1d.bias", 0, inner)
		b.matrix(p+"ssm_x.weight", inner, rank+2*ssmState)
		b.matrix(p+"ssm_dt.weight", rank, inner)
		b.fill(p+"ssm_dt.bias", 0, inner)
		b.fill(p+"ssm_a", -1, ssmState, inner)
		b.fill(p+"ssm_d", 1, inner)
		b.matrix(p+"ssm_out.weight", inner, a.embd)
	})
	b.fill("output_norm.weight", 1, a.embd)
}

// attends reports whether a layer of a hybrid model has a KV cache: every second one does.
func attends(l int) bool { return l%2 == 1 }

// hybridHeads returns the number of key/value heads of each layer.
func (a arch) hybridHeads() []int32 {
	list := make([]int32, a.layers)
	for l := range list {
		if attends(l) {
			list[l] = int32(a.kvHeads)
		}
	}
	return list
}

func (a arch) hybrid() []kv {
	list := a.decoder()
	for i := range list {
		if list[i].key == "attention.head_count_kv" {
			list[i].val = a.hybridHeads()
		}
	}
	return list
}

const mambaHeads = 8 // for granite's state space layers

func (a arch) graniteHybrid() []kv {
	return append(a.hybrid(),
		kv{"ssm.conv_kernel", uint32(ssmConv)},
		kv{"ssm.inner_size", uint32(a.ssmInner())},
		kv{"ssm.state_size", uint32(ssmState)},
		kv{"ssm.time_step_rank", uint32(mambaHeads)},
		kv{"ssm.group_count", uint32(1)},
		kv{"attention.scale", float32(0.125)},
		kv{"embedding_scale", float32(1)},
		kv{"residual_scale", float32(1)},
		kv{"logit_scale", float32(1)},
		kv{"rope.scaling.finetuned", false},
	)
}

func graniteHybrid(b *builder, a arch) {
	inner := a.ssmInner()
	b.blocks(a, func(l int, p string) {
		b.fill(p+"attn_norm.weight", 1, a.embd)
		if attends(l) {
			b.attention(a, p)
		} else {
			b.matrix(p+"ssm_in.weight", a.embd, 2*inner+2*ssmState+mambaHeads)
			b.fill(p+"ssm_conv1d.weight", 0.5, ssmConv, inner+2*ssmState)
			b.fill(p+"ssm_conv1d.bias", 0, inner+2*ssmState)
			b.fill(p+"ssm_dt.bias", 0, mambaHeads)
			b.fill(p+"ssm_a", -1, 1, mambaHeads)
			b.fill(p+"ssm_d", 1, 1, mambaHeads)
			b.fill(p+"ssm_norm.weight", 1, inner, 1)
			b.matrix(p+"ssm_out.weight", inner, a.embd)
		}
		b.ffn(a, p)
	})
	b.fill("output_norm.weight", 1, a.embd)
}

const lfmCache = 3 // positions that lfm2's convolution covers

func (a arch) lfm2() []kv { return append(a.hybrid(), kv{"shortconv.l_cache", uint32(lfmCache)}) }

func lfm2(b *builder, a arch) {
	b.blocks(a, func(l int, p string) {
		b.fill(p+"attn_norm.weight", 1, a.embd)
		if attends(l) {
			b.attention(a, p)
			b.headNorms(a, p)
		} else {
			b.small(p+"shortconv.conv.weight", lfmCache, a.embd)
			b.matrix(p+"shortconv.in_proj.weight", a.embd, 3*a.embd)
			b.matrix(p+"shortconv.out_proj.weight", a.embd, a.embd)
		}
		b.ffn(a, p)
	})
	b.fill("token_embd_norm.weight", 1, a.embd)
}
