package grammar

import (
	"errors"
	"sync"
)

// Whitespace is the whitespace allowed between the tokens of JSON.
type Whitespace uint8

const (
	// Compact allows none.
	Compact Whitespace = iota
	// AnyWhitespace allows all that JSON allows.
	AnyWhitespace
)

// Order is the order in which the properties of an object may come.
type Order uint8

const (
	// SchemaOrder is the order of declaration in the schema, undeclared ones last.
	SchemaOrder Order = iota
	// AnyOrder allows any order.
	AnyOrder
)

// Options configures what a grammar accepts and how much it may cost. The zero value is ready for
// use.
type Options struct {
	Whitespace Whitespace
	Order      Order
	MaxBytes   int // of a schema or grammar; 0: 4 MiB
	MaxMemory  int // of its states and masks, approximately, in bytes; 0: 48 MiB
}

const (
	defaultMaxBytes  = 4 << 20
	defaultMaxMemory = 48 << 20
	maxSchemaDepth   = 1000
	maxSchemaValues  = 1 << 18
)

// Work is counted in steps of a few tenths of a microsecond.
const (
	compileWork = 1_000_000
	maskWork    = 600_000   // one mask
	callWork    = 300_000   // any other call of a matcher
	byteWork    = 1_000     // in addition, per byte of a text
	maxWork     = 6_000_000 // a whole text
)

func (o *Options) maxBytes() int {
	if o.MaxBytes > 0 {
		return o.MaxBytes
	}
	return defaultMaxBytes
}

func (o *Options) maxMemory() int {
	if o.MaxMemory > 0 {
		return o.MaxMemory
	}
	return defaultMaxMemory
}

func (o *Options) maxLength() int { return 1 << 20 }

func (o *Options) maxItems() int { return 1 << 15 }

// ErrExhausted reports that a call would exceed the bounds on work or memory. The state of the
// matcher does not change, and the text so far stays valid, but what may come next is unknown: end
// the text, or remove tokens up to a place where another one can be tried.
var ErrExhausted = errors.New("grammar: bound of work or memory is exhausted")

// ErrNoToken reports that no token of the vocabulary can come next, although the text is
// incomplete: the vocabulary lacks what the grammar needs, or unique items have run out of values.
var ErrNoToken = errors.New("grammar: no token can come next")

// Grammar is a compiled schema, expression or grammar. Its matchers share cached results. It is
// safe for concurrent use.
//
// It has many methods because all states are interned in it, refer to each other and share one
// bound of memory: when it is exhausted, all of them are dropped together.
type Grammar struct {
	mu    sync.Mutex // guards all below
	opts  Options
	work  int                  // allowed for compiling
	build func(*Grammar) error // compiles: first set, then everything else
	err   error                // if not nil, build has failed
	set   *rxSet
	c     *compiler
	first config

	generation   int // counts how often the grammar was compiled
	floor        int // bytes in use right after compiling
	ids          int
	leaves       map[leafKey]*leaf
	counts       map[countedKey]*leaf
	classes      map[[256]uint8]*[256]uint8
	frames       map[frameKey]*frame
	usedLists    map[usedList]*usedList
	composites   map[string]*composite // by their entries
	single       map[top]*stack
	stacks       map[string]*stack
	manys        map[string]*many
	conjunctions map[*lit]*schema
	buf          []byte
	root         *stack
	masks        map[maskKey][]uint64
	maskBytes    int
	maskVocab    *Vocabulary
	walker       walker
	escaped      rx // the characters that must be escaped
	leads        map[leadKey]*[0xF5 - 0xC2]*leaf
	freeNames    map[freeKey]rx
	names        map[namesKey]rx
	texts        map[textKey]*ruleState
	mixed        bool // JSON occurs within rules
}

// newGrammar compiles with build, which may use the given work.
func newGrammar(opts Options, work int, build func(*Grammar) error) (*Grammar, error) {
	g := &Grammar{opts: opts, work: work, build: build}
	g.reset()
	if g.err != nil {
		return nil, g.err
	}
	return g, nil
}

// reset drops all states and compiles anew. Matchers then replay their texts.
func (g *Grammar) reset() {
	g.generation++
	g.set = newRxSet(g.work, g.opts.maxMemory())
	g.c, g.first, g.root = nil, config{}, &stack{}
	g.leaves = map[leafKey]*leaf{}
	g.counts = map[countedKey]*leaf{}
	g.classes = map[[256]uint8]*[256]uint8{}
	g.frames = map[frameKey]*frame{}
	g.usedLists = map[usedList]*usedList{}
	g.composites = map[string]*composite{}
	g.single = map[top]*stack{}
	g.stacks = map[string]*stack{}
	g.manys = map[string]*many{}
	g.conjunctions = map[*lit]*schema{}
	g.masks, g.maskBytes = map[maskKey][]uint64{}, 0
	g.walker = walker{}
	g.leads = map[leadKey]*[0xF5 - 0xC2]*leaf{}
	g.freeNames = map[freeKey]rx{}
	g.names = map[namesKey]rx{}
	g.texts = map[textKey]*ruleState{}
	g.escaped = g.set.class([]runeRange{{0, 0x1F}, {'"', '"'}, {'\\', '\\'}})
	g.err = g.build(g)
	if g.err == nil && g.set.exhausted() {
		g.err = refuse("", "", "too complex")
	}
	g.floor = g.set.bytes
}

func (g *Grammar) nextID() int { g.ids++; return g.ids }

func (g *Grammar) charge(bytes int) { g.set.charge(bytes) }

// relieve drops states when they use too much memory. It must not be called between steps that
// compare states.
func (g *Grammar) relieve() {
	if limit := g.opts.maxMemory(); g.set.bytes > limit-limit/4 {
		g.reset()
	}
}

// dropMasks drops the cached masks.
func (g *Grammar) dropMasks() {
	clear(g.masks)
	g.charge(-g.maskBytes)
	g.maskBytes = 0
}

// Compile compiles a JSON Schema. It refuses what it cannot guarantee, with an *Error.
func Compile(text []byte, opts Options) (*Grammar, error) {
	if len(text) > opts.maxBytes() {
		return nil, refuse("", "", "schema is larger than %d bytes", opts.maxBytes())
	}
	schema := string(text)
	return newGrammar(opts, compileWork, func(g *Grammar) error { return g.compileSchema(schema) })
}

func (g *Grammar) compileSchema(text string) error {
	g.charge(6 * len(text))
	root, err := parseJSON(text, maxSchemaDepth, maxSchemaValues)
	if err != nil {
		return refuse("", "", "schema: %v", err)
	}
	g.c = newCompiler(newParser(root, &g.opts, g.set))
	s, err := g.c.parse(root, "")
	if err != nil {
		return err
	}
	n := g.c.node([]lit{{s: s}})
	if err := g.c.complete(n); err != nil {
		return err
	}
	g.first = config{thread: thread{g.leaf(leafKey{kind: lValue, node: n}), g.root}}
	return nil
}

// Accepts reports whether doc is a complete document of the grammar. It reports false when that
// cannot be determined within the bounds of the grammar.
func (g *Grammar) Accepts(doc []byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err != nil {
		return false
	}
	g.set.work = maxWork
	c, ok := g.run(g.first, doc)
	ok = ok && g.final(&c)
	if g.set.exhausted() {
		g.reset()
		return false
	}
	g.relieve()
	return ok
}
