package batch

import (
	"math"
	"time"
)

// Speculation: tokens after the chosen one are drafted and evaluated in the same step, each with
// its logits. The tokens of the answer are chosen from those logits as they would be without draft
// tokens; a draft token that is not what was chosen is taken back out of the cache with all that
// follow it. So draft tokens never change what is chosen, and what they can cost is time. Whether
// they pay is measured: how often those for a request are right, and by how much they make a step
// longer.

const (
	// mostDraft bounds the draft tokens for one request in a step.
	mostDraft = 16
	// leastMatch is how many tokens of the text's end must have been there before.
	leastMatch = 2
	// mostMatch bounds how many are compared: more tell no more.
	mostMatch = 16
	// lookBack bounds how far back the text is looked at. It takes some 30 microseconds.
	lookBack = 1 << 16
	// firstDraftCost is the cost of a draft token before one was measured, as a part of a step for
	// one answer.
	firstDraftCost = 0.25
	// leastDraftShare bounds what a draft token is believed to cost below, as a step may be held up
	// less than the one that it is compared with.
	leastDraftShare = 64
	// refresh is after how many steps with draft tokens one is made without, for the comparison.
	refresh = 64
	// mostSure bounds the tokens that must follow for one request in a step.
	mostSure = 64
	// leastGain is the price from which on they get a step each.
	leastGain = 0.8
)

// draftRoom returns how many tokens may be drafted in the next step. While prompts are being read
// there are none: the time of such steps is the prompts'.
func (s *Scheduler) draftRoom(answers int) int {
	if s.conf.DraftTokens == 0 || answers == 0 || len(s.prompts) > 0 || s.unsure ||
		s.pace.answers[answers] == 0 || s.pace.speculated >= refresh {
		return 0
	}
	return min(s.conf.DraftTokens, s.conf.StepTokens-answers)
}

// sureRoom returns how many tokens that must follow may be in the next step: the same bounds in
// time, but they take no logits and need not be taken back.
func (s *Scheduler) sureRoom(answers int) int {
	if answers == 0 || len(s.prompts) > 0 || s.unsure || s.pace.answers[answers] == 0 || s.pace.speculated >= refresh || !s.pace.together(answers) {
		return 0
	}
	return s.conf.StepTokens - answers - min(s.conf.DraftTokens, s.conf.StepTokens-answers)
}

// sureOf returns how many of the tokens that must follow a slot's next one go with it.
func (x *slot) sureOf(room, slotTokens int) int {
	if x.req.AllLogits { // there is one row for them
		return 0
	}
	n := min(len(x.ahead), mostSure, room, slotTokens-len(x.text)-1) // one is chosen in any case
	if x.req.MaxTokens > 0 {
		n = min(n, x.req.MaxTokens-x.generated-1)
	}
	return max(n, 0)
}

// together reports whether tokens that follow each other take less time in one step than in one
// each: mostly they do, as the weights are read once, but not with a model that is small enough to
// stay in a processor's cache. Where they do not it is tried again now and then.
func (p *pace) together(answers int) bool {
	if p.price(answers, false) <= leastGain {
		return true
	}
	p.passed++
	if p.passed < refresh {
		return false
	}
	p.passed = 0
	return true
}

// price returns how likely a draft token must be to pay where so many answers share a step: the
// time that it adds, and its draft's where it has one, as a part of the time that a token takes
// without it.
func (p *pace) price(answers int, drafted bool) float64 {
	plain := p.answers[answers]
	cost := p.drafted
	if cost == 0 {
		cost = time.Duration(firstDraftCost * float64(plain) / float64(answers))
	}
	if drafted {
		cost += p.drafter
	}
	return float64(cost) * float64(answers) / float64(plain)
}

// draftFor fills in a slot's draft.
func (s *Scheduler) draftFor(x *slot, answers, room int) {
	most := s.conf.SlotTokens - len(x.text) // tokens that may still be chosen
	if n := x.req.MaxTokens; n > 0 {
		most = min(most, n-x.generated)
	}
	most = min(most-1, mostDraft, room)                                  // one is chosen in any case
	if most < 1 || x.odds.off || s.decoder.Floor(x.seq) >= len(x.held) { // what cannot be cut cannot be taken back
		return
	}
	if s.conf.LookUp {
		if at, length := match(x.text); length >= leastMatch {
			s.lookUp(x, at, min(most, x.odds.worth(kindOf(length), s.pace.price(answers, false))))
		}
	}
	if len(x.draft) == 0 && s.conf.Drafter != nil {
		s.askDrafter(x, answers, most)
	}
}

// lookUp fills in a slot's draft: what followed at a place of its text.
func (s *Scheduler) lookUp(x *slot, at, most int) {
	for i := range most {
		var t Token
		if from := at + i; from < len(x.text) {
			t = x.text[from]
		} else { // the text repeats itself
			t = x.draft[from-len(x.text)]
		}
		if s.conf.Vocab.Ends[t] { // nothing follows it
			return
		}
		x.draft = append(x.draft, t)
	}
}

// takeBack removes wrong draft tokens from the cache: it leaves n tokens.
func (s *Scheduler) takeBack(x *slot, n int) {
	if n == len(x.held) {
		return
	}
	if s.decoder.Remove(x.seq, n) {
		x.held = x.held[:n]
		return
	}
	s.conf.Log.Warn("failed to take draft tokens back, the text is read again", "positions", len(x.held))
	s.forget(x)
	if x.req == nil {
		return
	}
	x.odds.off = true
	x.next, x.reading, x.waited = none, len(x.text), 0
	s.prompts = append(s.prompts, x)
}

// match returns where the text goes on after the last place at which it reads as its end does, for
// as many tokens as anywhere, and for how many.
func match(text []Token) (at, length int) {
	n := len(text)
	for i := n - 2; i >= max(0, n-lookBack); i-- {
		if text[i] != text[n-1] {
			continue
		}
		m := 1
		for m < mostMatch && m <= i && text[i-m] == text[n-1-m] {
			m++
		}
		if m > length {
			at, length = i+1, m
		}
		if length == mostMatch {
			break
		}
	}
	return at, length
}

// odds is how often the draft tokens for a request were right.
type odds struct {
	off     bool
	kind    int // of the current draft: see kindOf
	classes [byModel + 1]struct {
		right, wrong float64
		rest         int // draft tokens to pass over before the next attempt
		pause        int // the last value of rest
	}
}

// kindOf tells draft tokens apart by how many tokens were there before: more make a better draft.
func kindOf(length int) int {
	switch {
	case length < 4:
		return 0
	case length < 8:
		return 1
	}
	return 2
}

// byModel is the kind of a Drafter's draft tokens.
const byModel = 3

// The odds of a draft token before any was made, by its kind, and how many draft tokens that counts
// as.
func firstOdds(kind int) float64 { return [byModel + 1]float64{0.4, 0.6, 0.8, 0.7}[kind] }

const (
	firstWeight = 2
	mostCounted = 32 // older draft tokens count less
	likely      = 0.5
	likelyTries = 4
	leastPause  = 8
	mostPause   = 256
)

// worth returns how many draft tokens of a kind are worth their price. Where none is, one is tried
// now and then, ever more rarely.
func (o *odds) worth(kind int, price float64) int {
	o.kind = kind
	c := &o.classes[kind]
	p := (c.right + firstWeight*firstOdds(kind)) / (c.right + c.wrong + firstWeight)
	if p >= price {
		c.rest, c.pause = 0, 0
		if price <= 0 || p >= 1 {
			return mostDraft
		}
		return max(1, int(min(mostDraft, math.Log(price)/math.Log(p)))) // p^n is the odds of the n-th
	}
	if c.pause == 0 {
		c.pause, c.rest = leastPause, leastPause
	}
	if c.rest > 0 {
		c.rest--
		return 0
	}
	c.pause = min(2*c.pause, mostPause)
	c.rest = c.pause
	if p > likely { // it is the price that keeps it: that of several tells more
		return likelyTries
	}
	return 1
}

// learn takes how many of the last draft tokens were right.
func (o *odds) learn(right, of int) {
	c := &o.classes[o.kind]
	c.right += float64(right)
	if right < of {
		c.wrong++
	}
	if n := c.right + c.wrong; n > mostCounted {
		c.right, c.wrong = c.right*mostCounted/n, c.wrong*mostCounted/n
	}
}
