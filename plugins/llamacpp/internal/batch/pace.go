package batch

import (
	"cmp"
	"slices"
	"time"
)

const (
	// firstChunk is the prompt tokens of a step as long as no step with a prompt was measured.
	firstChunk = 64
	// leastChunk bounds below what a step takes of prompts: less costs more than it takes.
	leastChunk = 16
	// plainSteps is by how many steps without prompts a step may last longer, where that is more
	// than Config.PromptPause: on a slow machine, or with a large model, that fits few tokens, and
	// requests that wait for a first token would wait for long.
	plainSteps = 3
	// soloTime and soloChunk bound a step that has prompts alone. It holds up nobody who is being
	// answered, but a short prompt that comes after it began, and a cancellation.
	soloTime  = 500 * time.Millisecond
	soloChunk = 128
	// mostPatience bounds by how much streams wait longer where many wait for their first token.
	mostPatience = 4
	// smoothing is the weight of a new measurement.
	smoothing = 0.3
)

// pace measures steps, to say how many prompt tokens fit into a time.
type pace struct {
	plain time.Duration // of a step without prompts; 0: not measured
	token time.Duration // what a prompt token adds to a step; 0: not measured

	answers    []time.Duration // of a step with so many answers and nothing else; 0: not measured
	drafted    time.Duration   // what a draft token adds to such a step; 0: not measured
	drafter    time.Duration   // what a Drafter takes for a token; 0: not measured
	speculated int             // steps with draft tokens since the last one without
	passed     int             // steps without what must follow, as it did not pay
}

// measured takes the time of a step.
func (p *pace) measured(took time.Duration, answers, drafted, prompt int) {
	switch {
	case drafted > 0:
		plain := p.answers[answers]
		// One that was held up must not end all draft tokens: a token never costs more than its own
		// step.
		p.drafted = lower(p.drafted, min(max((took-plain)/time.Duration(drafted), plain/leastDraftShare), plain))
		p.speculated++
		return
	case prompt == 0:
		p.plain, p.answers[answers] = smooth(p.plain, took), lower(p.answers[answers], took)
		p.speculated = 0
		return
	}
	// The rest is what the step takes without them, and never more than half of it: that is of
	// another step, with more answers or fewer.
	p.token = smooth(p.token, (took-min(p.plain, took/2))/time.Duration(prompt))
}

// smooth returns the next estimate. One step that was held up counts as one that took four times as
// long as usual, at most.
func smooth(old, now time.Duration) time.Duration {
	now = max(now, 1)
	if old == 0 {
		return now
	}
	return old + time.Duration(smoothing*float64(min(now, 4*old)-old))
}

// lower returns the next estimate of what a step takes when nothing else holds it up: it falls ten
// times as fast as it rises. Where machines do other work beside, that decides about draft tokens
// less wildly than a mean.
func lower(old, now time.Duration) time.Duration {
	if next := smooth(old, now); next <= old || old == 0 {
		return next
	}
	return old + (smooth(old, now)-old)/10
}

// within returns how many prompt tokens fit into a time.
func (p *pace) within(d time.Duration, least int) int {
	if p.token == 0 {
		return max(firstChunk, least)
	}
	return max(int(d/p.token), least)
}

// promptRoom returns how many prompt tokens the next step takes beside the answers that it goes on
// with.
func (s *Scheduler) promptRoom(answers int) int {
	room := s.conf.StepTokens - answers
	switch {
	case answers == 0:
		return min(room, s.pace.within(soloTime, soloChunk))
	case s.conf.PromptChunk > 0:
		return min(room, s.conf.PromptChunk)
	}
	// Where more wait for their first token than for their next one, the latter wait longer.
	patience := min(max(1, float64(len(s.prompts))/float64(answers)), mostPatience)
	pause := max(time.Duration(patience*float64(s.conf.PromptPause)), plainSteps*s.pace.plain)
	return min(room, s.pace.within(pause, leastChunk))
}

// orderPrompts puts those first that are soon whole. What others got before a prompt makes it as
// much shorter, so that each gets its turn.
func (s *Scheduler) orderPrompts() {
	slices.SortStableFunc(s.prompts, func(a, b *slot) int {
		return cmp.Compare(a.missing()-a.waited, b.missing()-b.waited)
	})
}

// agePrompts counts what others got in a step.
func (s *Scheduler) agePrompts(total int) {
	for _, x := range s.prompts {
		x.waited += total - x.add
	}
}
