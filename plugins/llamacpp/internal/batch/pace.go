package batch

import (
	"cmp"
	"slices"
	"time"
)

const (
	// firstChunk is the number of prompt tokens in a step until one with a prompt has been
	// measured.
	firstChunk = 64
	// leastChunk is the minimum number of prompt tokens in a step: smaller chunks cost more than
	// they save.
	leastChunk = 16
	// plainSteps is the time that prompts may add to a step, in steps without prompts, if that is
	// more than Config.PromptPause. On a slow machine, or with a large model, few tokens fit into
	// PromptPause, and requests would wait long for their first token.
	plainSteps = 3
	// soloTime and soloChunk bound a step that has only prompts. It delays no answers, but it does
	// delay a short prompt that arrives after it began, and a cancellation.
	soloTime  = 500 * time.Millisecond
	soloChunk = 128
	// mostPatience bounds the factor by which streams wait longer when many requests wait for their
	// first token.
	mostPatience = 4
	// smoothing is the weight of a new measurement.
	smoothing = 0.3
)

// pace measures steps to estimate how many prompt tokens fit into a time.
type pace struct {
	plain time.Duration // of a step without prompts; 0: not measured
	token time.Duration // what a prompt token adds to a step; 0: not measured

	answers    []time.Duration // of a step with only that many answers; 0: not measured
	drafted    time.Duration   // what a draft token adds to such a step; 0: not measured
	drafter    time.Duration   // a Drafter's time per token; 0: not measured
	speculated int             // steps with draft tokens since the last one without
	passed     int             // steps without forced tokens, as those did not pay off
}

// measured records the time of a step.
func (p *pace) measured(took time.Duration, answers, drafted, prompt int) {
	switch {
	case drafted > 0:
		plain := p.answers[answers]
		// A step that was held up must not end drafting: a draft token never costs more than a
		// step.
		p.drafted = lower(p.drafted, min(max((took-plain)/time.Duration(drafted), plain/leastDraftShare), plain))
		p.speculated++
		return
	case prompt == 0:
		p.plain, p.answers[answers] = smooth(p.plain, took), lower(p.answers[answers], took)
		p.speculated = 0
		return
	}
	// The rest is the time of the step without prompt tokens, at most half of it: plain may be the
	// time of a step with another number of answers.
	p.token = smooth(p.token, (took-min(p.plain, took/2))/time.Duration(prompt))
}

// smooth returns the next estimate. A step that was held up counts as at most four times the usual
// time.
func smooth(old, now time.Duration) time.Duration {
	now = max(now, 1)
	if old == 0 {
		return now
	}
	return old + time.Duration(smoothing*float64(min(now, 4*old)-old))
}

// lower returns the next estimate of the undisturbed time of a step: it falls ten times as fast as
// it rises. On machines with other load, it makes decisions about draft tokens more stable than a
// mean.
func lower(old, now time.Duration) time.Duration {
	if next := smooth(old, now); next <= old || old == 0 {
		return next
	}
	return old + (smooth(old, now)-old)/10
}

// within returns how many prompt tokens fit into a time, at least least.
func (p *pace) within(d time.Duration, least int) int {
	if p.token == 0 {
		return max(firstChunk, least)
	}
	return max(int(d/p.token), least)
}

// promptRoom returns how many prompt tokens the next step takes beside the answers in progress.
func (s *Scheduler) promptRoom(answers int) int {
	room := s.conf.StepTokens - answers
	switch {
	case answers == 0:
		return min(room, s.pace.within(soloTime, soloChunk))
	case s.conf.PromptChunk > 0:
		return min(room, s.conf.PromptChunk)
	}
	// When more requests wait for their first token than for their next one, the latter wait
	// longer.
	patience := min(max(1, float64(len(s.prompts))/float64(answers)), mostPatience)
	pause := max(time.Duration(patience*float64(s.conf.PromptPause)), plainSteps*s.pace.plain)
	return min(room, s.pace.within(pause, leastChunk))
}

// orderPrompts puts the prompts with the fewest missing tokens first. Tokens that others got while
// a prompt waited count as if it were that much shorter, so that each gets its turn.
func (s *Scheduler) orderPrompts() {
	slices.SortStableFunc(s.prompts, func(a, b *slot) int {
		return cmp.Compare(a.missing()-a.waited, b.missing()-b.waited)
	})
}

// agePrompts adds the tokens that others got in a step.
func (s *Scheduler) agePrompts(total int) {
	for _, x := range s.prompts {
		x.waited += total - x.add
	}
}
