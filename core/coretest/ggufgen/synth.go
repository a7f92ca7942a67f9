package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
)

type arch struct {
	layers, embd, heads, kvHeads, ffn, vocab, ctx int
	ropeBase                                      float32
	untied                                        bool
}

var presets = map[string]arch{
	"15m":  {layers: 6, embd: 288, heads: 6, kvHeads: 6, ffn: 768, vocab: 32000, ctx: 2048, ropeBase: 10000},
	"135m": {layers: 30, embd: 576, heads: 9, kvHeads: 3, ffn: 1536, vocab: 49152, ctx: 8192, ropeBase: 100000},
	"360m": {layers: 32, embd: 960, heads: 15, kvHeads: 5, ffn: 2560, vocab: 49152, ctx: 8192, ropeBase: 100000},
	"1.1b": {layers: 22, embd: 2048, heads: 32, kvHeads: 4, ffn: 5632, vocab: 32000, ctx: 4096, ropeBase: 10000, untied: true},
	"3b":   {layers: 28, embd: 3072, heads: 24, kvHeads: 8, ffn: 8192, vocab: 128256, ctx: 8192, ropeBase: 500000},
}

// The state space layers of mamba.
const (
	ssmConv  = 4
	ssmState = 16
)

func (a arch) ssmInner() int { return 2 * a.embd }
func (a arch) ssmRank() int  { return max(1, a.embd/16) }

// meta returns what a model of a family says of its shape.
func (a arch) meta(family string, window int) []kv {
	head := uint32(a.embd / a.heads)
	list := []kv{
		{"context_length", uint32(a.ctx)},
		{"embedding_length", uint32(a.embd)},
		{"block_count", uint32(a.layers)},
		{"attention.layer_norm_rms_epsilon", float32(1e-5)},
		{"vocab_size", uint32(a.vocab)},
	}
	if family == "mamba" {
		list = append(list,
			kv{"feed_forward_length", uint32(0)},
			kv{"attention.head_count", uint32(0)},
			kv{"ssm.conv_kernel", uint32(ssmConv)},
			kv{"ssm.inner_size", uint32(a.ssmInner())},
			kv{"ssm.state_size", uint32(ssmState)},
			kv{"ssm.time_step_rank", uint32(a.ssmRank())},
		)
	} else {
		list = append(list,
			kv{"feed_forward_length", uint32(a.ffn)},
			kv{"attention.head_count", uint32(a.heads)},
			kv{"attention.head_count_kv", uint32(a.kvHeads)},
			kv{"rope.dimension_count", head},
			kv{"rope.freq_base", a.ropeBase},
		)
	}
	if family == "gemma3" {
		list = append(list, kv{"attention.key_length", head}, kv{"attention.value_length", head}, kv{"attention.sliding_window", uint32(window)})
	}
	for i := range list {
		list[i].key = family + "." + list[i].key
	}
	return list
}

const chatML = `{%- for m in messages -%}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}`

// runSynth writes a model with random weights: its speed and memory use are
// those of a trained model of the same shape, and its text is noise.
func runSynth(args []string) error {
	fs := flag.NewFlagSet("ggufgen", flag.ContinueOnError)
	out := fs.String("out", "", "GGUF file to write")
	preset := fs.String("preset", "135m", "shape to start from: 15m, 135m, 360m, 1.1b, 3b")
	typ := fs.String("type", "q8_0", "weight type: f32, f16, q8_0, q4_0")
	seed := fs.Uint64("seed", 1, "seed of the random weights")
	layers := fs.Int("layers", 0, "override the number of layers")
	embd := fs.Int("embd", 0, "override the embedding length")
	heads := fs.Int("heads", 0, "override the number of attention heads")
	kvHeads := fs.Int("kv-heads", 0, "override the number of key/value heads")
	ffn := fs.Int("ffn", 0, "override the feed-forward length")
	vocab := fs.Int("vocab", 0, "override the vocabulary size (at least 512)")
	parts := fs.Int("split", 1, "files to write the model into; -out then names them without -00001-of-0000N.gguf")
	ctx := fs.Int("ctx", 0, "override the context length")
	family := fs.String("arch", "llama", "architecture: llama, gemma3 (sliding window), mamba (recurrent)")
	window := fs.Int("window", 64, "sliding window of gemma3")
	if err := fs.Parse(args); err != nil {
		return err
	}
	a, ok := presets[*preset]
	if !ok || *out == "" {
		return fmt.Errorf("ggufgen needs -out and a known -preset")
	}
	for _, o := range []struct {
		dst *int
		v   int
	}{{&a.layers, *layers}, {&a.embd, *embd}, {&a.heads, *heads}, {&a.kvHeads, *kvHeads}, {&a.ffn, *ffn}, {&a.vocab, *vocab}, {&a.ctx, *ctx}} {
		if o.v > 0 {
			*o.dst = o.v
		}
	}
	var wt, ft uint32
	switch *typ {
	case "f32":
		wt, ft = typeF32, 0
	case "f16":
		wt, ft = typeF16, 1
	case "q8_0":
		wt, ft = typeQ8_0, 7
	case "q4_0":
		wt, ft = typeQ4_0, 2
	default:
		return fmt.Errorf("unknown -type %q", *typ)
	}
	switch {
	case !slices.Contains([]string{"llama", "gemma3", "mamba"}, *family):
		return fmt.Errorf("unknown -arch %q", *family)
	case *family == "mamba" && *typ != "f32" && a.ssmRank()%32 != 0:
		return fmt.Errorf("a mamba of embedding length %d is f32 only", a.embd)
	case a.vocab < 512:
		return fmt.Errorf("vocabulary %d is below 512", a.vocab)
	case a.embd%a.heads != 0 || a.heads%a.kvHeads != 0 || (a.embd/a.heads)%2 != 0:
		return fmt.Errorf("heads do not divide the embedding length evenly")
	case a.embd%32 != 0 || a.ffn%32 != 0:
		return fmt.Errorf("embedding and feed-forward lengths have to be multiples of 32")
	}
	kvDim := a.embd / a.heads * a.kvHeads

	rng := splitmix(*seed)
	var ts []tensor
	var params uint64
	mat := func(name string, cols, rows int) {
		r := splitmix(rng.next())
		t := tensor{name: name, dims: []uint64{uint64(cols), uint64(rows)}, typ: wt}
		t.write = func(w io.Writer) error {
			return randomRows(w, wt, &r, t.elements(), 1/math.Sqrt(float64(cols)))
		}
		params += t.elements()
		ts = append(ts, t)
	}
	// vector is a tensor of one value; numbers other than weights are F32 always.
	vector := func(name string, value float32, dims ...int) {
		t := tensor{name: name, typ: typeF32}
		for _, d := range dims {
			t.dims = append(t.dims, uint64(d))
		}
		t.write = func(w io.Writer) error {
			return binary.Write(w, binary.LittleEndian, slices.Repeat([]float32{value}, int(t.elements())))
		}
		params += t.elements()
		ts = append(ts, t)
	}
	norm := func(name string) { vector(name, 1, a.embd) }
	mat("token_embd.weight", a.embd, a.vocab)
	for l := 0; l < a.layers; l++ {
		p := fmt.Sprintf("blk.%d.", l)
		norm(p + "attn_norm.weight")
		if *family == "mamba" {
			mat(p+"ssm_in.weight", a.embd, 2*a.ssmInner())
			vector(p+"ssm_conv1d.weight", 0.5, ssmConv, a.ssmInner())
			vector(p+"ssm_conv1d.bias", 0, a.ssmInner())
			mat(p+"ssm_x.weight", a.ssmInner(), a.ssmRank()+2*ssmState)
			mat(p+"ssm_dt.weight", a.ssmRank(), a.ssmInner())
			vector(p+"ssm_dt.bias", 0, a.ssmInner())
			vector(p+"ssm_a", -1, ssmState, a.ssmInner())
			vector(p+"ssm_d", 1, a.ssmInner())
			mat(p+"ssm_out.weight", a.ssmInner(), a.embd)
			continue
		}
		mat(p+"attn_q.weight", a.embd, a.embd)
		mat(p+"attn_k.weight", a.embd, kvDim)
		mat(p+"attn_v.weight", a.embd, kvDim)
		mat(p+"attn_output.weight", a.embd, a.embd)
		norm(p + "ffn_norm.weight")
		mat(p+"ffn_gate.weight", a.embd, a.ffn)
		mat(p+"ffn_down.weight", a.ffn, a.embd)
		mat(p+"ffn_up.weight", a.embd, a.ffn)
		if *family == "gemma3" {
			vector(p+"attn_q_norm.weight", 1, a.embd/a.heads)
			vector(p+"attn_k_norm.weight", 1, a.embd/a.heads)
			norm(p + "post_attention_norm.weight")
			norm(p + "post_ffw_norm.weight")
		}
	}
	norm("output_norm.weight")
	if a.untied {
		mat("output.weight", a.embd, a.vocab)
	}

	tokens, scores, types := syntheticVocab(a.vocab)
	meta := []kv{
		{"general.architecture", *family},
		{"general.name", fmt.Sprintf("synthetic %s %s seed %d", *preset, *typ, *seed)},
		{"general.description", "random weights, for load tests only"},
		{"general.file_type", ft},
		{"general.quantization_version", uint32(2)},
	}
	meta = append(meta, a.meta(*family, *window)...)
	meta = append(meta,
		kv{"tokenizer.ggml.model", "llama"},
		kv{"tokenizer.ggml.tokens", tokens},
		kv{"tokenizer.ggml.scores", scores},
		kv{"tokenizer.ggml.token_type", types},
		kv{"tokenizer.ggml.unknown_token_id", uint32(0)},
		kv{"tokenizer.ggml.bos_token_id", uint32(1)},
		kv{"tokenizer.ggml.eos_token_id", uint32(2)},
		kv{"tokenizer.ggml.eot_token_id", uint32(len(tokens) - 1)},
		kv{"tokenizer.ggml.add_bos_token", true},
		kv{"tokenizer.ggml.add_eos_token", false},
		kv{"tokenizer.chat_template", chatML},
	)
	if *parts > 1 {
		return writeSplit(*out, *parts, meta, ts)
	}
	if err := writeGGUF(*out, meta, ts); err != nil {
		return err
	}
	fi, err := os.Stat(*out)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %.1f M parameters, %.1f MiB, %d tensors\n", *out, float64(params)/1e6, float64(fi.Size())/(1<<20), len(ts))
	return nil
}

// splitmix is the splitmix64 generator: fast, and the same on every Go release.
type splitmix uint64

func (s *splitmix) next() uint64 {
	*s += 0x9e3779b97f4a7c15
	z := uint64(*s)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// randomRows writes n uniform values with zero mean and the given standard deviation.
func randomRows(w io.Writer, typ uint32, r *splitmix, n uint64, std float64) error {
	const chunk = 32 * 4096
	buf := make([]byte, 0, chunk*4)
	for done := uint64(0); done < n; {
		m := min(chunk, n-done)
		buf = buf[:0]
		switch typ {
		case typeF32:
			for range m {
				buf = binary.LittleEndian.AppendUint32(buf, math.Float32bits(float32(r.unit()*std)))
			}
		case typeF16:
			for range m {
				buf = binary.LittleEndian.AppendUint16(buf, f16(float32(r.unit()*std)))
			}
		case typeQ8_0: // half scale, then 32 signed bytes in [-127,127]
			d := f16(float32(std / 73.32))
			for i := uint64(0); i < m; i += 32 {
				buf = binary.LittleEndian.AppendUint16(buf, d)
				for range 4 {
					v := r.next()
					for k := range 8 {
						b := byte(v >> (8 * k))
						if b == 0x80 {
							b = 0
						}
						buf = append(buf, b)
					}
				}
			}
		case typeQ4_0: // half scale, then 16 bytes of two nibbles in [1,15], zero point 8
			d := f16(float32(std / 4.32))
			for i := uint64(0); i < m; i += 32 {
				buf = binary.LittleEndian.AppendUint16(buf, d)
				for range 2 {
					v := r.next()
					for k := range 8 {
						x := byte(v>>(8*k)) % 225
						buf = append(buf, (1+x/15)<<4|(1+x%15))
					}
				}
			}
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
		done += m
	}
	return nil
}

// unit returns a uniform value with zero mean and unit variance.
func (s *splitmix) unit() float64 {
	return (float64(s.next()>>11)/(1<<53)*2 - 1) * math.Sqrt(3)
}

// syntheticVocab builds a SentencePiece-like vocabulary of exactly n pieces:
// specials, the 256 bytes, printable characters, then letter n-grams with and
// without a leading space. Every n-gram's prefix comes before it, so that the
// merge procedure can reach each piece. The last two are the ChatML markers.
func syntheticVocab(n int) (tokens []string, scores []float32, types []int32) {
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
