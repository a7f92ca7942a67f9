package inference

import (
	"context"
	"errors"
	"time"

	"github.com/rbee-project/rbee/core/admission"
	"github.com/rbee-project/rbee/core/inference/sse"
)

const (
	// promptBytes is the estimated number of bytes per token, until the worker reports the count.
	promptBytes = 4
	// answerTokens is the estimated length of an answer that the request does not bound.
	answerTokens = 256
	// codeLimit is OpenAI's error code for exceeding a key's limit, as opposed to an overload by
	// all clients together.
	codeLimit = "rate_limit_exceeded"
)

// Usage is what an answer used, in tokens.
type Usage = sse.Usage

// Rate is the usage of a key against one of its limits.
type Rate = admission.RateState

// Limiter enforces limits per key. It is safe for concurrent use.
type Limiter interface {
	// Admit counts a request that uses about the given tokens, and returns the key's state under
	// each of its limits, even on refusal. settle is called once, when the request has ended, with
	// the tokens that it used; nil: nothing to settle. Errors: *LimitError.
	Admit(ctx context.Context, key string, tokens int64) (rates []Rate, settle func(used int64), err error)
}

// LimitError reports that a key has reached a limit. Its status is 429, unlike an overload's.
type LimitError struct {
	Err        error // classified
	RetryAfter time.Duration
}

func (e *LimitError) Error() string { return e.Err.Error() }

// Unwrap returns the classified error.
func (e *LimitError) Unwrap() error { return e.Err }

// Code returns the code of the error in OpenAI's API.
func (*LimitError) Code() string { return codeLimit }

// estimate returns an estimate of the tokens in the prompt, and of all tokens of the request.
func (c *call) estimate() (prompt, all int64) {
	if c.r.Form != nil {
		return 0, 0 // the length of a form, such as a recording, says nothing about tokens
	}
	prompt = int64(len(c.r.Body)) / promptBytes
	switch c.r.Path {
	case "/v1/chat/completions", "/v1/completions":
		answer := c.facts.maxTokens
		if answer == 0 {
			answer = answerTokens
		}
		return prompt, prompt + min(answer, 1<<40)
	}
	return prompt, prompt
}

// admit checks the request against its key's limits. The caller calls settle when the request has
// ended.
func (c *call) admit() (settle func(), err error) {
	var all int64
	c.prompt, all = c.estimate()
	if c.s.o.Limiter == nil || c.r.Key == "" {
		return func() {}, nil
	}
	rates, end, err := c.s.o.Limiter.Admit(c.ctx, c.r.Key, all)
	if c.r.Limited != nil && len(rates) > 0 {
		c.r.Limited(rates)
	}
	if err != nil {
		if _, limited := errors.AsType[*LimitError](err); limited {
			c.s.meter.Limited()
		}
		return nil, err
	}
	return func() {
		if end != nil {
			u := c.used()
			end(u.Prompt + u.Completion)
		}
	}, nil
}

// used returns the usage of the request as the worker reported it, or else an estimate.
func (c *call) used() (u sse.Usage) {
	switch {
	case !c.sent && !c.answered:
		return sse.Usage{} // no worker answered it
	case c.usage.Prompt > 0:
		u = c.usage
	default:
		u.Prompt = c.prompt
	}
	u.Completion = max(u.Completion, c.tokens)
	return u
}
