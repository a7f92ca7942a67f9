// Package llamatest checks answers against llama.cpp's own plain loop, run at test time on the same
// machine: kernels round differently on different CPUs, so a recorded answer would only be right on
// one of them.
package llamatest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/ebitengine/purego"
	"github.com/hybridgroup/yzma/pkg/llama"
)

// Margin bounds a near tie: how far the log probability of a chosen token may lie below that of the
// likeliest one, in nats, in the plain loop after the same tokens. contributing/engine.md describes
// how it was measured.
const Margin = 0.25

// contextTokens is the size of the loop's context. Prompts and answers of tests are shorter.
const contextTokens = 1024

// Token is a token of a model's vocabulary.
type Token = int32

// Loop is llama.cpp's simplest loop over one model: decode, take the token with the largest logit,
// repeat. It uses the binding and none of rbee's engine code. It is not safe for concurrent use.
type Loop struct {
	ctx   llama.Context
	mem   llama.Memory
	vocab llama.Vocab
	most  int     // prompt tokens per batch
	read  []Token // tokens in the context
}

// Settings configures how a loop computes. The zero value uses the engine's defaults.
type Settings struct {
	Piece int // prompt tokens per batch; 0: all
}

// Answer is the plain loop's answer to a prompt.
type Answer struct {
	Tokens []Token // the last one ends the answer, unless cut off by the limit
	Text   string
	Gap    float64 // the smallest distance between the likeliest token and the runner-up, in nats
}

// Load loads the engine's libraries below dir. It is for tests of other packages: llamacpp loads
// them itself, and they can be loaded only once per process.
func Load(t testing.TB, dir string) {
	t.Helper()
	noError(t, llama.Load(dir))
	llama.LogSet(purego.NewCallback(func(int32, *byte, uintptr) uintptr { return 0 }))
	llama.BackendInit()
	noError(t, llama.GGMLBackendLoadAllFromPath(dir))
}

// New returns a loop over its own copy of the model at path. The libraries must be loaded.
func New(t testing.TB, path string) *Loop {
	t.Helper()
	return NewWith(t, path, Settings{})
}

// NewWith is New with settings.
func NewWith(t testing.TB, path string, s Settings) *Loop {
	t.Helper()
	model, err := llama.ModelLoadFromFile(path, llama.ModelDefaultParams())
	noError(t, err)
	t.Cleanup(func() { noError(t, llama.ModelFree(model)) })
	params := llama.ContextDefaultParams()
	params.NCtx, params.NThreads, params.NThreadsBatch = contextTokens, 1, 1
	most := contextTokens
	if s.Piece > 0 {
		most = s.Piece
	}
	ctx, err := llama.InitFromModel(model, params)
	noError(t, err)
	t.Cleanup(func() { noError(t, llama.Free(ctx)) })
	mem, err := llama.GetMemory(ctx)
	noError(t, err)
	return &Loop{ctx: ctx, mem: mem, vocab: llama.ModelGetVocab(model), most: most}
}

// Tokens returns the tokens of a rendered prompt.
func (l *Loop) Tokens(prompt string) []Token {
	list := llama.Tokenize(l.vocab, prompt, true, true)
	out := make([]Token, len(list))
	for i, t := range list {
		out[i] = Token(t)
	}
	return out
}

// Answer runs the loop to the end of the answer, or for limit tokens.
func (l *Loop) Answer(t testing.TB, prompt []Token, limit int) Answer {
	t.Helper()
	a := Answer{Gap: contextTokens}
	var raw strings.Builder
	l.rewind(t, 0)
	for next := prompt; len(a.Tokens) < limit; {
		two := l.decode(t, next)[:2]
		best := two[0]
		a.Tokens, a.Gap = append(a.Tokens, best.token), min(a.Gap, float64(two[0].logit-two[1].logit))
		if llama.VocabIsEOG(l.vocab, llama.Token(best.token)) {
			break
		}
		raw.WriteString(l.piece(best.token))
		next = []Token{best.token}
	}
	a.Text = valid(raw.String())
	return a
}

// Check returns nil if text is an answer to prompt, cut off after at most limit tokens, in which
// each token is the likeliest one in the plain loop after the same tokens, or nearly tied with it.
// As text alone does not determine its tokens, Check searches for one way to spell it. The error
// shows how far it got.
func (l *Loop) Check(t testing.TB, prompt []Token, limit int, text string) error {
	t.Helper()
	s := search{loop: l, t: t, text: text, limit: limit, prompt: len(prompt)}
	l.rewind(t, 0)
	if !s.from(prompt, "", 0) {
		return fmt.Errorf("%q: after %q no token goes on within %g nats of the likeliest, which would make it %q", text, s.far, Margin, s.want)
	}
	if s.ties > 0 {
		t.Logf("%d near ties in %q", s.ties, text)
	}
	return nil
}

// search is a Check in progress.
type search struct {
	loop   *Loop
	t      testing.TB
	text   string
	limit  int
	prompt int

	ties      int
	reached   bool
	far, want string // the longest prefix reached, and its continuation with the likeliest token
}

// from decodes next, where raw is the text of the n tokens so far, and reports whether the rest of
// the text can follow.
func (s *search) from(next []Token, raw string, n int) bool {
	if n == s.limit {
		return valid(raw) == s.text
	}
	ranked := s.loop.decode(s.t, next)
	if !s.reached || len(raw) > len(s.far) {
		s.reached, s.far, s.want = true, raw, raw+s.loop.piece(ranked[0].token)
	}
	for i, c := range ranked {
		if float64(ranked[0].logit-c.logit) > Margin {
			return false
		}
		if i > 0 {
			s.ties++
		}
		if llama.VocabIsEOG(s.loop.vocab, llama.Token(c.token)) {
			if valid(raw) == s.text {
				return true
			}
		} else if longer := raw + s.loop.piece(c.token); strings.HasPrefix(s.text, valid(whole(longer))) {
			if s.from([]Token{c.token}, longer, n+1) {
				return true
			}
			s.loop.rewind(s.t, s.prompt+n)
		}
		if i > 0 {
			s.ties--
		}
	}
	return false
}

type choice struct {
	token Token
	logit float32
}

// decode adds tokens to the context and returns all tokens of the vocabulary, the likeliest first.
// Differences of logits are differences of log probabilities.
func (l *Loop) decode(t testing.TB, tokens []Token) []choice {
	t.Helper()
	logits := l.evaluate(t, tokens)
	ranked := make([]choice, len(logits))
	for i, logit := range logits {
		ranked[i] = choice{Token(i), logit}
	}
	slices.SortStableFunc(ranked, func(a, b choice) int { return cmp.Compare(b.logit, a.logit) })
	return ranked
}

// evaluate adds tokens to the context, in batches, and returns the logits after the last one, in
// the engine's memory.
func (l *Loop) evaluate(t testing.TB, tokens []Token) []float32 {
	t.Helper()
	for len(tokens) > l.most {
		l.step(t, tokens[:l.most])
		tokens = tokens[l.most:]
	}
	return l.step(t, tokens)
}

func (l *Loop) step(t testing.TB, tokens []Token) []float32 {
	t.Helper()
	list := make([]llama.Token, len(tokens))
	for i, t := range tokens {
		list[i] = llama.Token(t)
	}
	l.read = append(slices.Clip(l.read), tokens...)
	code, err := llama.Decode(l.ctx, llama.BatchGetOne(list))
	noError(t, err)
	if code != 0 {
		t.Fatalf("llama_decode returned %d", code)
	}
	logits, err := llama.GetLogitsIth(l.ctx, -1, int(llama.VocabNTokens(l.vocab)))
	noError(t, err)
	return logits
}

// rewind cuts the context to its first n positions. A recurrent model reads them again.
func (l *Loop) rewind(t testing.TB, n int) {
	t.Helper()
	done, err := llama.MemorySeqRm(l.mem, 0, llama.Pos(n), -1)
	noError(t, err)
	read := l.read[:n]
	l.read = read
	if done || n == 0 {
		return
	}
	_, err = llama.MemorySeqRm(l.mem, 0, -1, -1)
	noError(t, err)
	l.read = nil
	l.decode(t, read)
}

func (l *Loop) piece(token Token) string {
	buf := make([]byte, 256)
	return string(buf[:max(0, llama.TokenToPiece(l.vocab, llama.Token(token), buf, 0, false))])
}

// valid returns text as a worker sends it, with U+FFFD for each byte of invalid UTF-8.
func valid(s string) string { return string([]rune(s)) }

// whole cuts off an incomplete character at the end.
func whole(s string) string {
	for n := 1; n <= min(3, len(s)); n++ {
		if tail := []byte(s[len(s)-n:]); tail[0] >= 0xC0 {
			if !utf8.FullRune(tail) {
				return s[:len(s)-n]
			}
			return s
		}
	}
	return s
}

func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
