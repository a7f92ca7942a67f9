package main

import (
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
)

// arch is the shape of a model.
type arch struct {
	layers, embd, heads, kvHeads, ffn, vocab, ctx int
	ropeBase                                      float32
	untied                                        bool

	window        int // of layers with a sliding window
	experts, used int // 0: the feed-forward layers are dense
	pooling       int // llama.cpp's number of the pooling type; 0: not in the file
	labels        int // outputs of a classifier; 0: no classifier
}

func (a arch) head() int  { return a.embd / a.heads }
func (a arch) kvDim() int { return a.head() * a.kvHeads }

var presets = map[string]arch{
	"15m":  {layers: 6, embd: 288, heads: 6, kvHeads: 6, ffn: 768, vocab: 32000, ctx: 2048, ropeBase: 10000},
	"135m": {layers: 30, embd: 576, heads: 9, kvHeads: 3, ffn: 1536, vocab: 49152, ctx: 8192, ropeBase: 100000},
	"360m": {layers: 32, embd: 960, heads: 15, kvHeads: 5, ffn: 2560, vocab: 49152, ctx: 8192, ropeBase: 100000},
	"1.1b": {layers: 22, embd: 2048, heads: 32, kvHeads: 4, ffn: 5632, vocab: 32000, ctx: 4096, ropeBase: 10000, untied: true},
	"3b":   {layers: 28, embd: 3072, heads: 24, kvHeads: 8, ffn: 8192, vocab: 128256, ctx: 8192, ropeBase: 500000},
}

const chatML = `{%- for m in messages -%}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}`

// poolings maps names to the numbers of pooling_type.
var poolings = map[string]int{"": 0, "none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}

// runSynth writes a model with random weights: its speed and memory use match those of a trained
// model of the same shape, and its text is noise.
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
	name := fs.String("arch", "llama", "architecture: "+strings.Join(slices.Sorted(maps.Keys(families)), ", "))
	window := fs.Int("window", 64, "sliding window of architectures that have one")
	experts := fs.Int("experts", 0, "experts of llama (as Mixtral); qwen3moe has 8 by itself")
	used := fs.Int("experts-used", 2, "experts that work on one token")
	pooling := fs.String("pooling", "", "how the vectors of a text become one: none, mean, cls, last, rank")
	labels := fs.Int("labels", 0, "outputs of a classifier, for -pooling rank")
	tokenizer := fs.String("tokenizer", "", "kind of vocabulary: spm, bpe, wpm, ugm; empty: the architecture's own")
	pre := fs.String("pre", "qwen2", "pre-tokenizer of a bpe vocabulary")
	published := fs.String("tokenizer-json", "", "take the vocabulary of this tokenizer.json of byte pairs, in place of a synthetic one")
	gaps := fs.Bool("infill", false, "give an spm vocabulary the tokens of texts with a gap")
	rank := fs.Int("lora", 0, "write a LoRA adapter of this rank for such a model, in place of the model")
	set := map[string]string{}
	fs.Func("set", "KEY=NUMBER: replace a number or yes/no of the metadata; KEY= leaves the key out", func(s string) error {
		key, value, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("-set takes KEY=NUMBER")
		}
		set[key] = value
		return nil
	})
	if err := fs.Parse(args); err != nil {
		return err
	}
	a, ok := presets[*preset]
	family, known := families[*name]
	if !ok || !known || *out == "" {
		return fmt.Errorf("ggufgen needs -out, a known -preset and a known -arch")
	}
	if a.pooling, ok = poolings[*pooling]; !ok {
		return fmt.Errorf("unknown -pooling %q", *pooling)
	}
	a.window, a.labels, a.experts, a.used = *window, *labels, *experts, *used
	if family.experts > 0 && a.experts == 0 {
		a.experts = family.experts
	}
	for _, o := range []struct {
		dst *int
		v   int
	}{{&a.layers, *layers}, {&a.embd, *embd}, {&a.heads, *heads}, {&a.kvHeads, *kvHeads}, {&a.ffn, *ffn}, {&a.vocab, *vocab}, {&a.ctx, *ctx}} {
		if o.v > 0 {
			*o.dst = o.v
		}
	}
	var given vocabulary
	if *published != "" {
		var err error
		if given, err = vocabularyFrom(*published, *pre); err != nil {
			return err
		}
		a.vocab = given.size
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
	case *name == "mamba" && *typ != "f32" && a.ssmRank()%32 != 0:
		return fmt.Errorf("a mamba of embedding length %d is f32 only", a.embd)
	case a.vocab < 512:
		return fmt.Errorf("vocabulary %d is below 512", a.vocab)
	case a.embd%a.heads != 0 || a.heads%a.kvHeads != 0 || a.head()%2 != 0:
		return fmt.Errorf("heads do not divide the embedding length evenly")
	case a.embd%32 != 0 || a.ffn%32 != 0:
		return fmt.Errorf("embedding and feed-forward lengths have to be multiples of 32")
	}

	b := &builder{rng: splitmix(*seed), weights: wt}
	if *rank > 0 {
		return writeGGUF(*out, adapterMeta(*name, *rank), b.adapter(a, *rank))
	}
	b.matrix("token_embd.weight", a.embd, a.vocab)
	family.tensors(b, a)
	if a.untied && !family.reads {
		b.matrix("output.weight", a.embd, a.vocab)
	}

	meta := []kv{
		{"general.architecture", *name},
		{"general.name", fmt.Sprintf("synthetic %s %s seed %d", *preset, *typ, *seed)},
		{"general.description", "random weights, for load tests only"},
		{"general.file_type", ft},
		{"general.quantization_version", uint32(2)},
	}
	own := append(a.common(), family.meta(a)...)
	if a.labels > 1 {
		own = append(own, kv{"classifier.output_labels", labelNames(a.labels)})
	}
	if a.pooling > 0 {
		own = append(own, kv{"pooling_type", uint32(a.pooling)})
	}
	for _, e := range own {
		meta = append(meta, kv{*name + "." + e.key, e.val})
	}
	kind := *tokenizer
	if kind == "" {
		kind = family.tokenizer
	}
	words, err := given, error(nil)
	if *published == "" {
		words, err = vocabularyOf(kind, *pre, a.vocab)
	}
	if err != nil {
		return err
	}
	if *gaps {
		if err := words.addGaps(); err != nil {
			return err
		}
	}
	meta = append(meta, words.meta...)
	if !family.reads {
		meta = append(meta, kv{"tokenizer.chat_template", chatML})
	}
	if meta, err = replace(meta, set); err != nil {
		return err
	}
	if *parts > 1 {
		return writeSplit(*out, *parts, meta, b.tensors)
	}
	if err := writeGGUF(*out, meta, b.tensors); err != nil {
		return err
	}
	fi, err := os.Stat(*out)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %.1f M parameters, %.1f MiB, %d tensors\n", *out, float64(b.params)/1e6, float64(fi.Size())/(1<<20), len(b.tensors))
	return nil
}

func labelNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("label %d", i)
	}
	return names
}

// replace overwrites numbers in the metadata, so that tests get models with wrong values.
func replace(meta []kv, set map[string]string) ([]kv, error) {
	var out []kv
	for _, e := range meta {
		value, ok := set[e.key]
		delete(set, e.key)
		switch {
		case !ok:
		case value == "":
			continue
		default:
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("-set %s: %w", e.key, err)
			}
			switch e.val.(type) {
			case float32:
				e.val = float32(n)
			case bool:
				e.val = n != 0
			default:
				e.val = uint32(n)
			}
		}
		out = append(out, e)
	}
	for key := range set {
		return nil, fmt.Errorf("-set %s: the model has no such key", key)
	}
	return out, nil
}

// builder collects the tensors of a model.
type builder struct {
	rng     splitmix
	weights uint32 // type of the weight matrices
	tensors []tensor
	params  uint64
}

func (b *builder) add(t tensor) {
	b.params += t.elements()
	b.tensors = append(b.tensors, t)
}

// matrix adds random weights with this many columns; further dimensions are rows.
func (b *builder) matrix(name string, cols int, rows ...int) {
	b.random(name, b.weights, 1/math.Sqrt(float64(cols)), append([]int{cols}, rows...)...)
}

// small adds random numbers that are always F32: biases, position embeddings.
func (b *builder) small(name string, dims ...int) { b.random(name, typeF32, 0.1, dims...) }

func (b *builder) random(name string, typ uint32, std float64, dims ...int) {
	r := splitmix(b.rng.next())
	t := tensor{name: name, typ: typ, dims: sizes(dims)}
	t.write = func(w io.Writer) error { return randomRows(w, typ, &r, t.elements(), std) }
	b.add(t)
}

// fill adds a tensor of one repeated value, always F32.
func (b *builder) fill(name string, value float32, dims ...int) {
	t := tensor{name: name, typ: typeF32, dims: sizes(dims)}
	t.write = func(w io.Writer) error { return repeat(w, value, t.elements()) }
	b.add(t)
}

func sizes(dims []int) []uint64 {
	out := make([]uint64, len(dims))
	for i, d := range dims {
		out[i] = uint64(d)
	}
	return out
}
