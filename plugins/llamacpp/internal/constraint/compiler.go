package constraint

import (
	"container/list"
	"context"
	"crypto/sha256"
	"fmt"
	"sync"

	"github.com/rbee-project/rbee/plugins/grammar"
)

// Kind is the kind of a Spec.
type Kind string

// The kinds of a Spec.
const (
	Schema Kind = "schema"  // JSON Schema
	Regex  Kind = "regex"   // a regular expression that matches the whole answer
	GBNF   Kind = "grammar" // llama.cpp's grammar notation
	Choice Kind = "choice"  // one of several texts
)

// Spec specifies the form of an answer.
type Spec struct {
	Kind       Kind
	Text       string
	Choices    []string // for Choice
	Whitespace bool     // allow whitespace between the tokens of JSON
}

func (s *Spec) digest() [sha256.Size]byte {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%s %v %q %q", s.Kind, s.Whitespace, s.Text, s.Choices) // never fails
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	return sum
}

func (s *Spec) compile() (*grammar.Grammar, error) {
	opts := grammar.Options{}
	if s.Whitespace {
		opts.Whitespace = grammar.AnyWhitespace
	}
	switch s.Kind {
	case Schema:
		return grammar.Compile([]byte(s.Text), opts)
	case Regex:
		return grammar.CompileRegex(s.Text, opts)
	case GBNF:
		return grammar.CompileGBNF(s.Text, opts)
	case Choice:
		return grammar.CompileChoice(s.Choices, opts)
	}
	return nil, fmt.Errorf("unknown kind of grammar %q", s.Kind)
}

// Bounds of a Compiler's cache.
const (
	cacheBytes   = 128 << 20
	cacheEntries = 64
	compileSlots = 2
)

// Compiler compiles grammars and caches the most recently used ones. It is safe for concurrent use.
type Compiler struct {
	turns chan struct{} // held while compiling, which may keep a core busy for a while

	mu    sync.Mutex // guards below
	known map[[sha256.Size]byte]*list.Element
	order *list.List // of *cached, most recently used first
}

type cached struct {
	digest  [sha256.Size]byte
	grammar *grammar.Grammar
}

// NewCompiler returns a compiler with an empty cache.
func NewCompiler() *Compiler {
	return &Compiler{turns: make(chan struct{}, compileSlots), known: map[[sha256.Size]byte]*list.Element{}, order: list.New()}
}

// Compile returns the grammar of s. It may take a while, so do not call it where others wait. Its
// error is a *grammar.Error, or ctx's if that ends while waiting for other compilations.
func (c *Compiler) Compile(ctx context.Context, s Spec) (*grammar.Grammar, error) {
	digest := s.digest()
	if g := c.find(digest); g != nil {
		return g, nil
	}
	select {
	case c.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-c.turns }()
	if g := c.find(digest); g != nil { // compiled by another caller meanwhile
		return g, nil
	}
	g, err := s.compile()
	if err != nil {
		return nil, err
	}
	c.keep(digest, g)
	return g, nil
}

func (c *Compiler) find(digest [sha256.Size]byte) *grammar.Grammar {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.known[digest]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*cached).grammar
}

// keep adds a grammar and evicts the least recently used ones. Grammars grow while in use, so it
// asks each for its size.
func (c *Compiler) keep(digest [sha256.Size]byte, g *grammar.Grammar) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known[digest] != nil {
		return
	}
	c.known[digest] = c.order.PushFront(&cached{digest, g})
	total, n := 0, 0
	for e := c.order.Front(); e != nil; {
		next := e.Next()
		x := e.Value.(*cached)
		total += x.grammar.Memory()
		if n++; n > 1 && (total > cacheBytes || n > cacheEntries) {
			c.order.Remove(e)
			delete(c.known, x.digest)
		}
		e = next
	}
}
