// Command maskbench runs the grammar library over the schemas and documents of MaskBench and prints
// how many it judges rightly, what it refuses, and how long masks and compilations take.
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
	"sort"
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

func main() {
	data := flag.String("data", "", "visible.jsonl.gz of MaskBench")
	tokenizer := flag.String("tokenizer", "", "tokenizer.json of Llama 3; without it, documents are fed byte by byte and no masks are measured")
	order := flag.String("order", "any", "order of properties: any or schema")
	only := flag.String("only", "", "run only schemas whose names contain this")
	verbose := flag.Bool("v", false, "print every schema that does not pass")
	profile := flag.String("cpuprofile", "", "write a CPU profile to this file")
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
	err := run(*data, *tokenizer, *order, *only, *verbose)
	pprof.StopCPUProfile()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(data, tokenizer, order, only string, verbose bool) error {
	runtime.LockOSThread()
	items, err := load(data)
	if err != nil {
		return err
	}
	opts := grammar.Options{Whitespace: grammar.AnyWhitespace, Order: grammar.AnyOrder}
	if order == "schema" {
		opts.Order = grammar.SchemaOrder
	}
	var b bench
	b.opts, b.verbose = opts, verbose
	if tokenizer != "" {
		if b.tok, err = loadTokenizer(tokenizer); err != nil {
			return err
		}
		start := time.Now()
		b.vocab = grammar.NewVocabulary(b.tok.tokens, b.tok.eos)
		fmt.Printf("vocabulary of %d tokens prepared in %v\n", b.vocab.Len(), time.Since(start).Round(time.Millisecond))
	}
	b.refused = map[string]int{}
	for _, it := range items {
		if only == "" || strings.Contains(it.Name, only) {
			b.one(it)
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

type bench struct {
	opts    grammar.Options
	vocab   *grammar.Vocabulary
	tok     *bpe
	verbose bool

	schemas, passing, failing int
	valid, validRefused       int
	invalid, invalidAccepted  int
	refused                   map[string]int
	compile, masks            []time.Duration
	disagree                  int
}

func (b *bench) one(it item) {
	b.schemas++
	g, took, err := b.timeCompile(it.Schema)
	if b.verbose && took > 30*time.Millisecond {
		fmt.Printf("%s: compilation took %v\n", it.Name, took)
	}
	b.compile = append(b.compile, took)
	if err != nil {
		b.failing++
		key := "other"
		if e, ok := errors.AsType[*grammar.Error](err); ok && e.Keyword != "" {
			key = e.Keyword
		}
		b.refused[key]++
		if b.verbose {
			fmt.Printf("%s: refused: %v\n", it.Name, err)
		}
		return
	}
	ok := true
	for i, t := range it.Tests {
		doc := spaced(t.Data)
		accepted := b.feed(g, doc, it.Name)
		switch {
		case t.Valid:
			b.valid++
			if !accepted {
				b.validRefused++
			}
		default:
			b.invalid++
			if accepted {
				b.invalidAccepted++
			}
		}
		if accepted != t.Valid {
			ok = false
			if b.verbose {
				fmt.Printf("%s: test %d: valid %v accepted %v: %.300s\n", it.Name, i, t.Valid, accepted, doc)
			}
		}
	}
	if ok {
		b.passing++
	}
}

// timeCompile repeats what took long, because the machine may be loaded.
func (b *bench) timeCompile(schema []byte) (*grammar.Grammar, time.Duration, error) {
	start := cpu()
	g, err := grammar.Compile(schema, b.opts)
	took := cpu() - start
	for i := 0; i < 2 && took > 5*time.Millisecond; i++ {
		start = cpu()
		g, err = grammar.Compile(schema, b.opts)
		took = min(took, cpu()-start)
	}
	return g, took, err
}

func (b *bench) feed(g *grammar.Grammar, doc []byte, name string) bool {
	if b.vocab == nil {
		return g.Accepts(doc)
	}
	m := g.NewMatcher(b.vocab)
	mask := make([]uint64, b.vocab.MaskLen())
	for _, t := range b.tok.encode(doc) {
		start := cpu()
		m.Mask(mask)
		took := cpu() - start
		b.masks = append(b.masks, took)
		if took > time.Millisecond && b.verbose {
			fmt.Printf("%s: mask took %v before %q\n", name, took, b.tok.tokens[t])
		}
		allowed := mask[t/64]>>(t%64)&1 == 1
		err := m.Accept(t)
		if allowed != (err == nil) {
			b.disagree++
			fmt.Printf("%s: mask and acceptance of %q disagree: %v\n", name, b.tok.tokens[t], allowed)
		}
		if err != nil {
			return false
		}
	}
	return m.Done()
}

func (b *bench) report() {
	fmt.Printf("schemas                  %d\n", b.schemas)
	pct := func(n, of int) string { return fmt.Sprintf("%d (%.2f %%)", n, 100*float64(n)/float64(max(of, 1))) }
	fmt.Printf("passing                  %s\n", pct(b.passing, b.schemas))
	fmt.Printf("refused at compilation   %s\n", pct(b.failing, b.schemas))
	fmt.Printf("valid documents refused  %s of %d\n", pct(b.validRefused, b.valid), b.valid)
	fmt.Printf("invalid ones accepted    %s of %d\n", pct(b.invalidAccepted, b.invalid), b.invalid)
	fmt.Printf("mask and Accept disagree %d\n", b.disagree)
	quantiles("compilation", b.compile)
	if b.vocab != nil {
		quantiles("mask", b.masks)
	}
	keys := make([]string, 0, len(b.refused))
	for k := range b.refused {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(i, j int) bool {
		return b.refused[keys[i]] > b.refused[keys[j]] || b.refused[keys[i]] == b.refused[keys[j]] && keys[i] < keys[j]
	})
	fmt.Println("refused keywords:")
	for _, k := range keys {
		fmt.Printf("  %-24s %d\n", k, b.refused[k])
	}
}

// cpu returns the time that this thread has computed. The machine may be loaded; this is not.
func cpu() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}

func quantiles(what string, d []time.Duration) {
	if len(d) == 0 {
		return
	}
	slices.Sort(d)
	var sum time.Duration
	for _, x := range d {
		sum += x
	}
	at := func(q float64) time.Duration { return d[min(len(d)-1, int(q*float64(len(d))))] }
	fmt.Printf("%-12s n %d mean %v p50 %v p75 %v p90 %v p99 %v max %v\n", what, len(d), sum/time.Duration(len(d)), at(.5), at(.75), at(.9), at(.99), d[len(d)-1])
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
