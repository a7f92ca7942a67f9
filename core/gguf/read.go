package gguf

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
	"strings"
	"unicode"
)

const (
	defaultAlignment = 32
	minKeyBytes      = 8 + 4 + 1     // key length, value type, smallest value
	minTensorBytes   = 8 + 4 + 4 + 8 // name length, dimensions, type, offset
	maxTensorName    = 63            // engines refuse longer ones: GGML_MAX_NAME
	maxDims          = 4             // GGML_MAX_DIMS
	maxShownBytes    = 4 << 10       // bound of a name or licence; the rest is cut off
	maxLayers        = 1 << 14       // bound of a per-layer list
	maxSplits        = 1 << 12       // files of a model
	// no context, width or vocabulary is larger; keeps sums in range
	maxFact = math.MaxInt32 / 2
)

type parser struct {
	in        *reader
	size      uint64
	alignment uint64
	keys      map[string]struct{}
	out       File
	numbers   map[string]uint64 // architecture-dependent numbers by full key
	lists     map[string][]int  // the same, one per layer
}

func (p *parser) file() (*File, error) {
	if err := p.metadataAndTensors(); err != nil {
		return nil, err
	}
	if err := p.facts(); err != nil {
		return nil, err
	}
	return &p.out, nil
}

func (p *parser) metadataAndTensors() error {
	in := p.in
	if magic := in.next(4); magic != nil && string(magic) != "GGUF" {
		return bad("it does not start with GGUF")
	}
	version := in.u32()
	switch {
	case in.err != nil:
	case version == 2 || version == 3:
	case version == 2<<24 || version == 3<<24:
		return bad("it is big-endian")
	default:
		return bad("its version is %d, and only 2 and 3 can be read", version)
	}
	p.out.Version = int(version)
	tensors, keys := in.u64(), in.u64()
	if in.err != nil {
		return in.err
	}
	if keys > MaxKeys || keys > in.left()/minKeyBytes {
		return bad("it claims %d metadata entries, more than fit", keys)
	}
	if tensors > MaxTensors || tensors > in.left()/minTensorBytes {
		return bad("it claims %d tensors, more than fit", tensors)
	}
	p.numbers, p.lists = map[string]uint64{}, map[string][]int{}
	for range keys {
		p.entry()
		if in.err != nil {
			return in.err
		}
	}
	// the first of several files may hold only metadata
	if tensors == 0 && p.numbers["split.count"] < 2 {
		return bad("it has no tensors")
	}
	return p.tensors(int(tensors))
}

// entry reads one metadata entry and keeps it if the reader wants it.
func (p *parser) entry() {
	in := p.in
	key := in.text("a metadata key", MaxKeyBytes)
	t := valueType(in.u32())
	if in.err != nil {
		return
	}
	if key == "" {
		in.err = bad("a metadata entry has no name")
		return
	}
	if _, twice := p.keys[key]; twice {
		in.err = bad("the metadata entry %s stands in it twice", shown(key))
		return
	}
	p.keys[key] = struct{}{}
	if _, ok := t.width(); !ok {
		in.err = bad("the metadata entry %s has the unknown type %d", shown(key), t)
		return
	}
	if key == "general.alignment" && t != typeUint32 {
		in.err = bad("general.alignment is not a 32-bit number")
		return
	}
	switch {
	case t == typeString:
		p.textEntry(key)
	case t == typeArray:
		p.arrayEntry(key)
	case t == typeBool:
		if b := in.next(1); b != nil && b[0] > 1 {
			in.err = bad("the metadata entry %s is neither true nor false", shown(key))
		}
	case t.integer() && numberWanted(key):
		p.numbers[key] = in.integer(shown(key), t)
	default:
		width, _ := t.width()
		in.skip(width)
	}
}

func (p *parser) textEntry(key string) {
	in := p.in
	switch key {
	case "general.type":
		p.out.Type = clean(in.text(key, 64))
	case "general.architecture":
		p.out.Architecture = in.text(key, 64)
	case "general.name":
		p.out.Name = clean(in.text(key, MaxTemplateBytes))
	case "general.license":
		p.out.License = clean(in.text(key, MaxTemplateBytes))
	case "tokenizer.chat_template":
		p.out.ChatTemplate = in.text(key, MaxTemplateBytes)
	default:
		n := in.u64()
		if strings.HasPrefix(key, "tokenizer.chat_template") && n > MaxTemplateBytes {
			in.err = bad("%s has %d bytes, more than the allowed %d", shown(key), n, MaxTemplateBytes)
			return
		}
		in.skip(n)
	}
}

func (p *parser) arrayEntry(key string) {
	in := p.in
	if listWanted(key) {
		t, n := valueType(in.u32()), in.u64()
		if in.err == nil && t.integer() {
			if n > maxLayers {
				in.err = bad("%s is a list of %d numbers, more than a model has layers", shown(key), n)
			}
			var list []int
			for range n {
				v := in.integer(shown(key), t)
				if v > maxFact {
					in.err = bad("%s has the number %d, which no model has", shown(key), v)
				}
				if in.err != nil {
					return
				}
				list = append(list, int(v))
			}
			p.lists[key] = list
			return
		}
		p.skipElements(key, t, n, 1)
		return
	}
	n := p.skipArray(key, 1)
	if key == "tokenizer.ggml.tokens" {
		p.numbers[key] = n
	}
}

// skipArray skips an array and returns the number of its elements.
func (p *parser) skipArray(key string, depth int) uint64 {
	t, n := valueType(p.in.u32()), p.in.u64()
	p.skipElements(key, t, n, depth)
	return n
}

func (p *parser) skipElements(key string, t valueType, n uint64, depth int) {
	in := p.in
	if in.err != nil {
		return
	}
	width, ok := t.width()
	switch {
	case !ok:
		in.err = bad("the list %s has elements of the unknown type %d", shown(key), t)
	case depth > MaxArrayDepth:
		in.err = bad("the list %s is nested more than %d deep", shown(key), MaxArrayDepth)
	case n > in.left()/width:
		in.err = bad("the list %s claims %d elements, more than fit", shown(key), n)
	case t == typeString:
		for range n {
			in.skip(in.u64())
			if in.err != nil {
				return
			}
		}
	case t == typeArray:
		for range n {
			p.skipArray(key, depth+1)
			if in.err != nil {
				return
			}
		}
	default:
		in.skip(n * width) // cannot overflow: checked against the bytes left
	}
}

type span struct {
	start, end uint64
	name       string
}

func (p *parser) tensors(count int) error {
	in := p.in
	if a, ok := p.numbers["general.alignment"]; ok {
		if bits.OnesCount64(a) != 1 {
			return bad("general.alignment is %d and not a power of two", a)
		}
		p.alignment = a
	}
	names := make(map[string]struct{}, min(count, 4096))
	spans := make([]span, 0, min(count, 4096))
	ofType := map[uint32]uint64{}
	var parameters, total uint64
	for range count {
		name := in.text("a tensor's name", maxTensorName)
		if in.err != nil {
			return in.err
		}
		if _, twice := names[name]; twice {
			return bad("the tensor %s stands in it twice", shown(name))
		}
		names[name] = struct{}{}
		elements, t, offset, err := p.tensor(name)
		if err != nil {
			return err
		}
		typ, _ := tensorTypeOf(t)
		size := mul(elements/typ.elements, typ.bytes)
		end, carry := bits.Add64(offset, size, 0)
		if carry != 0 || end > p.size {
			return bad("the tensor %s lies beyond the end of the file", shown(name))
		}
		ofType[t] += size // at most count × the file's size, which cannot overflow
		parameters, total = add(parameters, elements), add(total, size)
		spans = append(spans, span{offset, end, name})
	}
	data := (in.pos + p.alignment - 1) / p.alignment * p.alignment
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.start, b.start) }) // none is empty
	for i, s := range spans {
		if data > p.size || s.end > p.size-data {
			return bad("the tensor %s lies beyond the end of the file", shown(s.name))
		}
		if i > 0 && s.start < spans[i-1].end {
			return bad("the tensors %s and %s overlap", shown(spans[i-1].name), shown(s.name))
		}
	}
	p.out.Tensors, p.out.TensorBytes, p.out.DataOffset, p.out.Alignment = count, int64(total), int64(data), int(p.alignment)
	p.out.Parameters = int64(min(parameters, math.MaxInt64))
	p.out.ofType, p.out.Quantization = ofType, dominating(ofType)
	return nil
}

// tensor reads what follows a tensor's name.
func (p *parser) tensor(name string) (elements uint64, t uint32, offset uint64, err error) {
	in := p.in
	dims := in.u32()
	if in.err == nil && dims > maxDims {
		return 0, 0, 0, bad("the tensor %s has %d dimensions, more than %d", shown(name), dims, maxDims)
	}
	elements = 1
	row := uint64(1)
	for i := range dims {
		d := in.u64()
		if in.err != nil {
			return 0, 0, 0, in.err
		}
		if d == 0 {
			return 0, 0, 0, bad("the tensor %s has a dimension of 0", shown(name))
		}
		if i == 0 {
			row = d
		}
		hi, lo := bits.Mul64(elements, d)
		if hi != 0 || lo > math.MaxInt64 {
			return 0, 0, 0, bad("the tensor %s has more elements than can be counted", shown(name))
		}
		elements = lo
	}
	t, offset = in.u32(), in.u64()
	if in.err != nil {
		return 0, 0, 0, in.err
	}
	typ, ok := tensorTypeOf(t)
	switch {
	case !ok:
		err = bad("the tensor %s has the unknown type %d", shown(name), t)
	case row%typ.elements != 0:
		err = bad("the tensor %s has rows of %d elements, which are not whole blocks of %s", shown(name), row, typ.name)
	case offset%p.alignment != 0:
		err = bad("the tensor %s starts at %d, which is not a multiple of %d", shown(name), offset, p.alignment)
	}
	return elements, t, offset, err
}

// dominating returns the name of the tensor type that takes the most bytes.
func dominating(ofType map[uint32]uint64) string {
	best := uint32(math.MaxUint32)
	for t, n := range ofType {
		if best == math.MaxUint32 || n > ofType[best] || n == ofType[best] && t < best {
			best = t
		}
	}
	typ, _ := tensorTypeOf(best) // empty if there are no tensors
	return typ.name
}

// numberSuffixes lists the wanted numbers, without the prefix "<architecture>.".
var numberSuffixes = []string{
	"context_length", "block_count", "embedding_length", "feed_forward_length", "vocab_size",
	"attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
	"expert_used_count", "expert_feed_forward_length", "pooling_type", "rope.dimension_count",
}

func numberWanted(key string) bool {
	switch key {
	case "general.alignment", "general.file_type", "split.count", "split.no", "split.tensors.count":
		return true
	}
	_, suffix, _ := strings.Cut(key, ".")
	return slices.Contains(numberSuffixes, suffix)
}

func listWanted(key string) bool {
	_, suffix, _ := strings.Cut(key, ".")
	return suffix == "feed_forward_length" || suffix == "attention.head_count" || suffix == "attention.head_count_kv"
}

// facts fills in what depends on the architecture's name, which may be anywhere in the metadata.
func (p *parser) facts() error {
	f := &p.out
	if err := p.split(); err != nil {
		return err
	}
	if f.Architecture == "" {
		if f.SplitNo > 0 {
			return nil // the first file has all facts
		}
		return bad("it does not say its architecture")
	}
	if strings.ContainsFunc(f.Architecture, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	}) {
		return bad("its architecture is called %s", shown(f.Architecture))
	}
	var err error
	number := func(key string) int {
		v := p.numbers[key]
		if v > maxFact {
			err = bad("%s is %d, which no model has", key, v)
			return 0
		}
		return int(v)
	}
	perLayer := func(suffix string) (int, []int) {
		if list := p.lists[f.Architecture+"."+suffix]; len(list) > 0 {
			return slices.Max(list), list
		}
		return number(f.Architecture + "." + suffix), nil
	}
	f.ContextTokens = number(f.Architecture + ".context_length")
	f.Layers = number(f.Architecture + ".block_count")
	f.Embedding = number(f.Architecture + ".embedding_length")
	f.FeedForward, _ = perLayer("feed_forward_length")
	if experts := mul(uint64(number(f.Architecture+".expert_used_count")), uint64(number(f.Architecture+".expert_feed_forward_length"))); experts <= maxFact {
		f.FeedForward = max(f.FeedForward, int(experts)) // that many experts work in parallel
	}
	f.Heads, _ = perLayer("attention.head_count")
	f.KVHeads, f.layerKVHeads = perLayer("attention.head_count_kv")
	if _, given := p.keys[f.Architecture+".attention.head_count_kv"]; !given {
		f.KVHeads = f.Heads
	}
	headDim := 0
	if f.Heads > 0 {
		headDim = f.Embedding / f.Heads
	}
	f.HeadDimK, f.HeadDimV = headDim, headDim
	if v := number(f.Architecture + ".attention.key_length"); v > 0 {
		f.HeadDimK = v
	}
	if v := number(f.Architecture + ".attention.value_length"); v > 0 {
		f.HeadDimV = v
	}
	f.Pooling = number(f.Architecture + ".pooling_type")
	if err == nil {
		err = p.asserted()
	}
	f.Vocab = number("tokenizer.ggml.tokens")
	if f.Vocab == 0 {
		f.Vocab = number(f.Architecture + ".vocab_size")
	}
	if v, ok := p.numbers["general.file_type"]; ok {
		if name := fileTypeName(v); name != "" {
			f.Quantization = name
		}
	}
	if f.Layers > maxLayers {
		return bad("it claims %d layers, more than any model has", f.Layers)
	}
	return err
}

// asserted refuses what llama.cpp asserts for every model: a failed assertion would end the
// process.
func (p *parser) asserted() error {
	arch := p.out.Architecture
	if _, given := p.keys[arch+".block_count"]; given && p.out.Layers == 0 {
		return bad("it claims to have no layers")
	}
	if n := p.numbers[arch+".rope.dimension_count"]; n%2 != 0 {
		return bad("it rotates %d dimensions, which are not pairs", n)
	}
	return nil
}

// split reads which part of a model the file is.
func (p *parser) split() error {
	f := &p.out
	count, no, tensors := p.numbers["split.count"], p.numbers["split.no"], p.numbers["split.tensors.count"]
	switch {
	case count > maxSplits:
		return bad("it is one of %d files, more than any model has", count)
	case no > 0 && no >= count:
		return bad("it says that it is file %d of %d", no+1, count)
	case tensors > MaxTensors*maxSplits:
		return bad("it is of a model with %d tensors, more than any has", tensors)
	}
	f.Splits, f.SplitNo, f.splitTensors = int(count), int(no), int(tensors)
	return nil
}

// shown returns a name from the file, short and printable, for a message.
func shown(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// clean returns a text from the file for display: bounded, without control characters.
func clean(s string) string {
	if len(s) > maxShownBytes {
		s = s[:maxShownBytes]
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "")))
}
