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
	Regex  Kind = "regex"   // an expression that the answer matches from end to end
	GBNF   Kind = "grammar" // llama.cpp's notation of grammars
	Choice Kind = "choice"  // one of several texts
)

// Spec is what an answer must look like.
type Spec struct {
	Kind       Kind
	Text       string
	Choices    []string // of Choice
	Whitespace bool     // may stand between the tokens of JSON
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

// Bounds of what a Compiler keeps.
const (
	cacheBytes   = 128 << 20
	cacheEntries = 64
	compileSlots = 2
)

// Compiler compiles grammars and keeps those that were used last. It is safe for concurrent use.
type Compiler struct {
	turns chan struct{} // taken while a grammar is compiled: it may take a processor for a while

	mu    sync.Mutex // guards below
	known map[[sha256.Size]byte]*list.Element
	order *list.List // of *cached, the last used first
}

type cached struct {
	digest  [sha256.Size]byte
	grammar *grammar.Grammar
}

// NewCompiler returns a compiler that keeps nothing yet.
func NewCompiler() *Compiler {
	return &Compiler{turns: make(chan struct{}, compileSlots), known: map[[sha256.Size]byte]*list.Element{}, order: list.New()}
}

// Compile returns the grammar of s. It may take a while: do not call it where others wait. Its
// error is a *grammar.Error, or ctx's while others compile.
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
	if g := c.find(digest); g != nil { // somebody else's turn made it
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

// keep adds a grammar and drops those that were not used for longest. Grammars grow while they are
// used, so that all of them are asked what they take.
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
