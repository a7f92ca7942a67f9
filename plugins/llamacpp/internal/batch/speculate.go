package batch

import (
	"math"
	"time"
)

// Speculation: tokens after the chosen one are drafted and evaluated in the same step, each with
// its logits. The tokens of the answer are chosen from those logits as they would be without
// drafts. A draft token that differs from the choice is removed from the cache, with all that
// follow it. So draft tokens never change the answer; they can only cost time. Whether they pay off
// is measured: how often a request's draft tokens are right, and by how much they lengthen a step.

const (
	// mostDraft bounds the draft tokens for one request in a step.
	mostDraft = 16
	// leastMatch is the minimum number of last tokens that must occur earlier in the text.
	leastMatch = 2
	// mostMatch bounds the tokens that are compared: more do not improve the draft.
	mostMatch = 16
	// lookBack bounds how far back the text is searched. A search takes some 30 microseconds.
	lookBack = 1 << 16
	// firstDraftCost is the assumed cost of a draft token before the first measurement, as a
	// fraction of a step for one answer.
	firstDraftCost = 0.25
	// leastDraftShare bounds the estimated cost of a draft token from below, as a divisor of a
	// step's time: a step may be held up less than the one that it is compared with.
	leastDraftShare = 64
	// refresh is the number of steps with draft tokens after which one is made without, for
	// comparison.
	refresh = 64
	// mostSure bounds the forced tokens of one request in a step.
	mostSure = 64
	// leastGain is the price from which forced tokens get a step each.
	leastGain = 0.8
)

// draftRoom returns how many tokens may be drafted in the next step: none while prompts are being
// read, as the time of such steps belongs to the prompts.
func (s *Scheduler) draftRoom(answers int) int {
	if s.conf.DraftTokens == 0 || answers == 0 || len(s.prompts) > 0 || s.unsure ||
		s.pace.answers[answers] == 0 || s.pace.speculated >= refresh {
		return 0
	}
	return min(s.conf.DraftTokens, s.conf.StepTokens-answers)
}

// sureRoom returns how many forced tokens may go into the next step: within the same bounds in
// time, but they need no logits and are never taken back.
func (s *Scheduler) sureRoom(answers int) int {
	if answers == 0 || len(s.prompts) > 0 || s.unsure || s.pace.answers[answers] == 0 || s.pace.speculated >= refresh || !s.pace.together(answers) {
		return 0
	}
	return s.conf.StepTokens - answers - min(s.conf.DraftTokens, s.conf.StepTokens-answers)
}

// sureOf returns how many of a slot's forced tokens go into the step with its next token.
func (x *slot) sureOf(room, slotTokens int) int {
	if x.req.AllLogits { // a slot has one row of logits
		return 0
	}
	n := min(len(x.ahead), mostSure, room, slotTokens-len(x.text)-1) // one is chosen in any case
	if x.req.MaxTokens > 0 {
		n = min(n, x.req.MaxTokens-x.generated-1)
	}
	return max(n, 0)
}

// together reports whether consecutive tokens take less time in one step than in a step each. They
// usually do, as the weights are read once, but not with a model small enough to stay in the CPU
// cache. When they do not, it tries again now and then.
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

// price returns how likely a draft token must be to pay off when that many answers share a step:
// the time that it adds, and that of drafting it if a Drafter does, as a fraction of the time of a
// token without drafts.
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
	if most < 1 || x.odds.off || s.decoder.Floor(x.seq) >= len(x.held) { // drafts could not be removed from the cache
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

// lookUp fills in a slot's draft with the tokens that followed an earlier place of its text.
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

// takeBack removes wrong draft tokens from the cache, down to n tokens.
func (s *Scheduler) takeBack(x *slot, n int) {
	if n == len(x.held) {
		return
	}
	if s.decoder.Remove(x.seq, n) {
		x.held = x.held[:n]
		return
	}
	s.conf.Log.Warn("failed to remove draft tokens, reading the text again", "positions", len(x.held))
	s.forget(x)
	if x.req == nil {
		return
	}
	x.odds.off = true
	x.next, x.reading, x.waited = none, len(x.text), 0
	s.prompts = append(s.prompts, x)
}

// match finds the last place where the text reads as at its end, for the longest match. It returns
// where the text continues there, and the length of the match.
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

// odds records how often the draft tokens for a request were right.
type odds struct {
	off     bool
	kind    int // of the current draft; see kindOf
	classes [byModel + 1]struct {
		right, wrong float64
		rest         int // draft tokens to skip before the next attempt
		pause        int // the last value of rest
	}
}

// kindOf classifies draft tokens by the length of the match before them: a longer one makes a
// better draft.
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

// firstOdds is the assumed probability that a first draft token of a kind is right. It counts as
// firstWeight measured ones.
func firstOdds(kind int) float64 { return [byModel + 1]float64{0.4, 0.6, 0.8, 0.7}[kind] }

const (
	firstWeight = 2
	mostCounted = 32 // older draft tokens lose weight
	likely      = 0.5
	likelyTries = 4
	leastPause  = 8
	mostPause   = 256
)

// worth returns how many draft tokens of a kind pay off. When none do, it tries a few now and then,
// ever more rarely.
func (o *odds) worth(kind int, price float64) int {
	o.kind = kind
	c := &o.classes[kind]
	p := (c.right + firstWeight*firstOdds(kind)) / (c.right + c.wrong + firstWeight)
	if p >= price {
		c.rest, c.pause = 0, 0
		if price <= 0 || p >= 1 {
			return mostDraft
		}
		return max(1, int(min(mostDraft, math.Log(price)/math.Log(p)))) // the n-th one is right with probability p^n
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
	if p > likely { // only the price prevents it: several measure that better
		return likelyTries
	}
	return 1
}

// learn records how many of the last draft tokens were right.
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
