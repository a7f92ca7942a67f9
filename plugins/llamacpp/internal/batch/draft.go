package batch

import (
	"errors"
	"math"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
)

const (
	// DraftStep bounds the tokens that a drafter reads before a step, as the answers wait for it.
	// It drafts nothing until it has read the whole text.
	DraftStep = 64
	// leastSure is the minimum probability of a drafted token. Tokens after a doubtful one are more
	// doubtful still.
	leastSure = 0.5
)

// Drafter drafts with a smaller model of the same vocabulary where looking up the text finds
// nothing. It has one sequence per slot of its scheduler, and only that scheduler's goroutine uses
// it.
type Drafter struct {
	decoder Decoder
	tokens  int // positions of a sequence
	vocab   int // only tokens below it may be drafted
	log     hclog.Logger
	held    [][]Token // contents of the decoder's sequences
	entries []Entry
	failed  bool
}

// NewDrafter returns a drafter with the given number of sequences, of tokens positions each. The
// decoder must accept steps of DraftStep tokens and cut its sequences anywhere. Tokens from vocab
// on are never drafted.
func NewDrafter(decoder Decoder, sequences, tokens, vocab int, log hclog.Logger) *Drafter {
	return &Drafter{decoder: decoder, tokens: tokens, vocab: vocab, log: log, held: make([][]Token, sequences)}
}

// draft returns at most n tokens that are likely to follow a text.
func (d *Drafter) draft(seq int, text []Token, n int) []Token {
	if d.failed || len(text)+n > d.tokens {
		return nil
	}
	if keep := min(common(text, d.held[seq]), len(text)-1); keep < len(d.held[seq]) {
		if !d.decoder.Remove(seq, keep) {
			d.fail(errors.New("a sequence cannot be cut"))
			return nil
		}
		d.held[seq] = d.held[seq][:keep]
	}
	todo := text[len(d.held[seq]):]
	if len(todo) > DraftStep {
		d.read(seq, todo[:DraftStep])
		return nil
	}
	var out []Token
	for d.read(seq, todo) {
		t, sure := likeliest(d.decoder.Logits(len(todo) - 1))
		if sure < leastSure || int(t) >= d.vocab {
			break
		}
		if out = append(out, t); len(out) == n {
			break
		}
		todo = []Token{t}
	}
	return out
}

// read evaluates the next tokens of a sequence, with logits for the last one.
func (d *Drafter) read(seq int, tokens []Token) bool {
	d.entries = d.entries[:0]
	for i, t := range tokens {
		d.entries = append(d.entries, Entry{Token: t, Pos: len(d.held[seq]) + i, Seq: seq, Logits: i == len(tokens)-1})
	}
	if err := d.decoder.Decode(d.entries); err != nil {
		d.fail(err)
		return false
	}
	d.held[seq] = append(d.held[seq], tokens...)
	return true
}

// fail disables the drafter; requests are answered without it.
func (d *Drafter) fail(err error) {
	d.failed = true
	d.log.Warn("draft model failed, drafting disabled", "error", err)
}

// likeliest returns the token with the largest logit, and its probability.
func likeliest(logits []float32) (t Token, p float64) {
	if len(logits) == 0 {
		return 0, 0
	}
	best := slices.Max(logits)
	sum := 0.0
	for i, l := range logits {
		if l == best {
			t = Token(i)
		}
		if l > best-16 { // smaller ones are negligible
			sum += math.Exp(float64(l - best))
		}
	}
	return t, 1 / sum
}

// askDrafter fills in a slot's draft if the drafter has one, and measures the time.
func (s *Scheduler) askDrafter(x *slot, answers, most int) {
	most = min(most, x.odds.worth(byModel, s.pace.price(answers, true)))
	if most < 1 {
		return
	}
	began := time.Now()
	x.draft = append(x.draft, s.conf.Drafter.draft(x.seq, x.text, most)...)
	if end := slices.IndexFunc(x.draft, func(t Token) bool { return s.conf.Vocab.Ends[t] }); end >= 0 {
		x.draft = x.draft[:end] // nothing follows it
	}
	if n := len(x.draft); n > 0 {
		s.pace.drafter = lower(s.pace.drafter, time.Since(began)/time.Duration(n))
	}
}
