// Command maskbench runs the grammar library over the schemas and documents of MaskBench. For each
// family of schemas and in total, it prints how many it judges correctly, what it refuses, and the
// time and memory it takes.
package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbee-project/rbee/plugins/grammar"
)

type item struct {
	Name   string          `json:"name"`
	Schema json.RawMessage `json:"schema"`
	Tests  []struct {
		Valid bool            `json:"valid"`
		Data  json.RawMessage `json:"data"`
	} `json:"tests"`
}

// family returns the source of a schema, the prefix of its name.
func (it *item) family() string {
	name, _, ok := strings.Cut(it.Name, "---")
	if !ok {
		name, _, _ = strings.Cut(it.Name, "_")
	}
	return name
}

func main() {
	var b bench
	data := flag.String("data", "", "visible.jsonl.gz of MaskBench")
	tokenizer := flag.String("tokenizer", "", "tokenizer.json of Llama 3; without it, documents are fed byte by byte and no masks are measured")
	order := flag.String("order", "any", "order of properties: any or schema")
	only := flag.String("only", "", "run only schemas whose names contain this")
	part := flag.String("part", "", "run only schemas n of m, as n/m")
	profile := flag.String("cpuprofile", "", "write a CPU profile to this file")
	flag.BoolVar(&b.verbose, "v", false, "print every schema that does not pass, and every slow mask")
	flag.BoolVar(&b.memory, "memory", false, "measure the memory that each grammar keeps, at the cost of a garbage collection for each")
	flag.DurationVar(&b.limit, "limit", 0, "stop the documents of a schema after this much computing time; 0: never")
	flag.IntVar(&b.slow, "slowest", 10, "print this many of the slowest masks and compilations")
	flag.Parse()
	if *profile != "" {
		f, err := os.Create(*profile)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	err := run(&b, *data, *tokenizer, *order, *only, *part)
	pprof.StopCPUProfile()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(b *bench, data, tokenizer, order, only, part string) error {
	runtime.LockOSThread()
	b.opts = grammar.Options{Whitespace: grammar.AnyWhitespace, Order: grammar.AnyOrder}
	switch order {
	case "any":
	case "schema":
		b.opts.Order = grammar.SchemaOrder
	default:
		return fmt.Errorf("unknown order %q", order)
	}
	n, of := 1, 1
	if part != "" {
		if _, err := fmt.Sscanf(part, "%d/%d", &n, &of); err != nil {
			return fmt.Errorf("part %q: %w", part, err)
		}
	}
	items, err := load(data)
	if err != nil {
		return err
	}
	if tokenizer != "" {
		if b.tok, err = loadTokenizer(tokenizer); err != nil {
			return err
		}
		start := time.Now()
		b.vocab = grammar.NewVocabulary(b.tok.tokens, b.tok.eos)
		fmt.Printf("vocabulary of %d tokens prepared in %v\n", b.vocab.Len(), time.Since(start).Round(time.Millisecond))
	}
	b.all = newTally("all")
	for i, it := range items {
		if i%of == n-1 && strings.Contains(it.Name, only) {
			b.one(&it)
		}
	}
	b.report()
	return nil
}

func load(path string) ([]item, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	var out []item
	r := bufio.NewReaderSize(z, 1<<20)
	for {
		line, err := r.ReadBytes('\n')
		if len(line) > 0 {
			var it item
			if err := json.Unmarshal(line, &it); err != nil {
				return nil, err
			}
			out = append(out, it)
		}
		if err != nil {
			return out, nil
		}
	}
}

// bench collects the results, for each family of schemas and in total.
type bench struct {
	opts    grammar.Options
	vocab   *grammar.Vocabulary
	tok     *bpe
	verbose bool
	memory  bool
	limit   time.Duration // CPU time for the documents of one schema
	slow    int

	families []*tally
	all      *tally
	masks    []slowest
	compiles []slowest
}

// slowest is one of the slowest masks or compilations.
type slowest struct {
	took time.Duration
	what string
}

// keep adds an entry to the n slowest in list.
func keep(list []slowest, n int, took time.Duration, what func() string) []slowest {
	if n == 0 || len(list) == n && list[n-1].took >= took {
		return list
	}
	list = append(list, slowest{took, what()})
	slices.SortStableFunc(list, func(a, b slowest) int { return int(b.took - a.took) })
	return list[:min(len(list), n)]
}

// tally holds the results of one family of schemas.
type tally struct {
	family                    string
	schemas, passing, refused int
	valid, validRefused       int
	invalid, invalidAccepted  int
	disagree, exhausted       int
	stopped                   int // schemas whose documents took longer than the limit
	tokens                    int
	keywords                  map[string]int // of refused schemas
	compile, masks            []time.Duration
	memory                    []int
}

func newTally(family string) *tally { return &tally{family: family, keywords: map[string]int{}} }

func (b *bench) of(family string) *tally {
	for _, t := range b.families {
		if t.family == family {
			return t
		}
	}
	t := newTally(family)
	b.families = append(b.families, t)
	return t
}

func (t *tally) add(o *tally) {
	t.schemas += o.schemas
	t.passing += o.passing
	t.refused += o.refused
	t.valid += o.valid
	t.validRefused += o.validRefused
	t.invalid += o.invalid
	t.invalidAccepted += o.invalidAccepted
	t.disagree += o.disagree
	t.exhausted += o.exhausted
	t.stopped += o.stopped
	t.tokens += o.tokens
	t.compile = append(t.compile, o.compile...)
	t.masks = append(t.masks, o.masks...)
	t.memory = append(t.memory, o.memory...)
	for k, n := range o.keywords {
		t.keywords[k] += n
	}
}

func (b *bench) one(it *item) {
	t := newTally(it.family())
	t.schemas = 1
	before := b.heap()
	g := b.compile(it, t)
	if g != nil {
		b.documents(g, it, t)
		if b.memory {
			t.memory = append(t.memory, max(b.heap()-before, 0))
			if n := t.memory[0]; n > 16<<20 && b.verbose {
				fmt.Printf("%s: keeps %.1f MiB\n", it.Name, mebibytes(n))
			}
		}
		runtime.KeepAlive(g)
	}
	b.of(t.family).add(t)
	b.all.add(t)
}

// heap returns the bytes in use, if memory is measured.
func (b *bench) heap() int {
	if !b.memory {
		return 0
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// compile repeats slow compilations, as the machine may be loaded.
func (b *bench) compile(it *item, t *tally) *grammar.Grammar {
	start := cpu()
	g, err := grammar.Compile(it.Schema, b.opts)
	took := cpu() - start
	for i := 0; i < 2 && took > 5*time.Millisecond; i++ {
		start = cpu()
		g, err = grammar.Compile(it.Schema, b.opts)
		took = min(took, cpu()-start)
	}
	t.compile = append(t.compile, took)
	b.compiles = keep(b.compiles, b.slow, took, func() string { return fmt.Sprintf("%s: %v", it.Name, err) })
	if err == nil {
		return g
	}
	t.refused++
	key := "other"
	if e, ok := errors.AsType[*grammar.Error](err); ok && e.Keyword != "" {
		key = e.Keyword
	}
	t.keywords[key]++
	if b.verbose {
		fmt.Printf("%s: refused: %v\n", it.Name, err)
	}
	return nil
}

func (b *bench) documents(g *grammar.Grammar, it *item, t *tally) {
	start := cpu()
	right := true
	for i, test := range it.Tests {
		doc := spaced(test.Data)
		accepted := b.feed(g, doc, it.Name, t, start)
		if b.late(start) {
			t.stopped++
			right = false
			fmt.Printf("%s: stopped by the limit in document %d of %d\n", it.Name, i+1, len(it.Tests))
			break
		}
		if test.Valid {
			t.valid++
		} else {
			t.invalid++
		}
		if accepted == test.Valid {
			continue
		}
		right = false
		if test.Valid {
			t.validRefused++
		} else {
			t.invalidAccepted++
		}
		if b.verbose {
			fmt.Printf("%s: test %d: valid %v accepted %v: %.300s\n", it.Name, i, test.Valid, accepted, doc)
		}
	}
	if right {
		t.passing++
	}
}

// late reports whether the documents of a schema, begun at start, have used up their time.
func (b *bench) late(start time.Duration) bool { return b.limit > 0 && cpu()-start > b.limit }

// feed reports whether doc is accepted to its end. It stops when the time limit is reached.
func (b *bench) feed(g *grammar.Grammar, doc []byte, name string, t *tally, began time.Duration) bool {
	if b.vocab == nil {
		return g.Accepts(doc)
	}
	m := g.NewMatcher(b.vocab)
	mask := make([]uint64, b.vocab.MaskLen())
	at := 0
	for _, token := range b.tok.encode(doc) {
		if b.late(began) {
			return false
		}
		text := b.tok.tokens[token]
		start := cpu()
		maskErr := m.Mask(mask)
		took := cpu() - start
		t.masks = append(t.masks, took)
		t.tokens++
		what := func() string {
			return fmt.Sprintf("%s before %q after %q", name, text, doc[max(0, at-60):at])
		}
		b.masks = keep(b.masks, b.slow, took, what)
		if took > time.Millisecond && b.verbose {
			fmt.Printf("mask took %v: %s\n", took, what())
		}
		if maskErr != nil {
			t.exhausted++
		}
		allowed := mask[token/64]>>(token%64)&1 == 1
		err := m.Accept(token)
		if maskErr == nil && allowed != (err == nil) {
			t.disagree++
			fmt.Printf("%s: mask and acceptance of %q disagree: %v\n", name, text, allowed)
		}
		if err != nil {
			return false
		}
		at += len(text)
	}
	return m.Done()
}

func (b *bench) report() {
	slices.SortFunc(b.families, func(x, y *tally) int { return strings.Compare(x.family, y.family) })
	fmt.Println("times of compiling and of masks are processor time of the one thread that computes them")
	fmt.Println("family                schemas passing  refused  compile p50      p99      max | masks   mean      p50      p75      p99      max")
	for _, t := range append(b.families, b.all) {
		c, m := quantiles(t.compile), quantiles(t.masks)
		fmt.Printf("%-22s%7d%8d%9d%13s%9s%9s |%7d%8s%9s%9s%9s%9s\n", t.family, t.schemas, t.passing, t.refused,
			brief(c.p50), brief(c.p99), brief(c.max), len(t.masks), brief(m.mean), brief(m.p50), brief(m.p75), brief(m.p99), brief(m.max))
	}
	t := b.all
	pct := func(n, of int) string { return fmt.Sprintf("%d (%.2f %%)", n, 100*float64(n)/float64(max(of, 1))) }
	fmt.Printf("schemas                  %d\n", t.schemas)
	fmt.Printf("passing                  %s\n", pct(t.passing, t.schemas))
	fmt.Printf("refused when compiled    %s\n", pct(t.refused, t.schemas))
	fmt.Printf("stopped by the limit     %d\n", t.stopped)
	fmt.Printf("valid documents refused  %s of %d\n", pct(t.validRefused, t.valid), t.valid)
	fmt.Printf("invalid ones accepted    %s of %d\n", pct(t.invalidAccepted, t.invalid), t.invalid)
	if b.vocab != nil {
		fmt.Printf("mask and Accept disagree %d\n", t.disagree)
		fmt.Printf("masks exhausted          %d\n", t.exhausted)
		fmt.Printf("tokens                   %d (%.0f a schema)\n", t.tokens, float64(t.tokens)/float64(max(t.schemas-t.refused, 1)))
	}
	if len(t.memory) > 0 {
		slices.Sort(t.memory)
		at := func(q float64) float64 { return mebibytes(t.memory[int(q*float64(len(t.memory)-1))]) }
		fmt.Printf("memory of a grammar      p50 %.2f MiB p99 %.2f max %.2f\n", at(.5), at(.99), at(1))
	}
	keywords := sortedByCount(t.keywords)
	fmt.Println("refused keywords:")
	for _, k := range keywords {
		fmt.Printf("  %-24s %d\n", k, t.keywords[k])
	}
	for _, x := range []struct {
		what string
		list []slowest
	}{{"compilations", b.compiles}, {"masks", b.masks}} {
		if len(x.list) > 0 {
			fmt.Printf("slowest %s:\n", x.what)
		}
		for _, s := range x.list {
			fmt.Printf("  %-9s %s\n", brief(s.took), s.what)
		}
	}
}

func mebibytes(n int) float64 { return float64(n) / (1 << 20) }

func sortedByCount(m map[string]int) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int {
		if m[a] != m[b] {
			return m[b] - m[a]
		}
		return strings.Compare(a, b)
	})
	return keys
}

// cpu returns the CPU time of this thread, which does not depend on other load.
func cpu() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}

type summary struct{ mean, p50, p75, p99, max time.Duration }

func quantiles(d []time.Duration) summary {
	if len(d) == 0 {
		return summary{}
	}
	slices.Sort(d)
	var sum time.Duration
	for _, x := range d {
		sum += x
	}
	at := func(q float64) time.Duration { return d[min(len(d)-1, int(q*float64(len(d))))] }
	return summary{sum / time.Duration(len(d)), at(.5), at(.75), at(.99), d[len(d)-1]}
}

// brief prints a duration with three digits.
func brief(d time.Duration) string {
	switch {
	case d >= 100*time.Millisecond:
		return d.Round(time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	default:
		return d.Round(100 * time.Nanosecond).String()
	}
}

// spaced writes JSON as Python's json.dumps does: a space after commas and colons.
func spaced(raw []byte) []byte {
	var out bytes.Buffer
	text := false
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		out.WriteByte(c)
		switch {
		case text && c == '\\':
			i++
			out.WriteByte(raw[i])
		case c == '"':
			text = !text
		case !text && (c == ',' || c == ':'):
			out.WriteByte(' ')
			for i+1 < len(raw) && raw[i+1] == ' ' {
				i++
			}
		}
	}
	return out.Bytes()
}
