package inference

import (
	"context"
	"errors"
	"time"

	"github.com/rbee-project/rbee/core/admission"
	"github.com/rbee-project/rbee/core/inference/sse"
)

const (
	// promptBytes is how many bytes of a request are taken for a token, until the worker says how
	// many there were.
	promptBytes = 4
	// answerTokens is how long an answer is taken to be that the request does not bound.
	answerTokens = 256
	// codeLimit is OpenAI's code of a refusal for a limit of who asks, in contrast to those for
	// what all ask together.
	codeLimit = "rate_limit_exceeded"
)

// Usage is what an answer took, in tokens.
type Usage = sse.Usage

// Rate is how far a key is with one of its limits.
type Rate = admission.RateState

// Limiter holds those who ask to their limits. It is safe for concurrent use.
type Limiter interface {
	// Admit counts a request of a key for about so many tokens, and says how far the key is with
	// each of its limits, also where it refuses. settle is called once, when the request has
	// ended, with the tokens that it used; nil: there is nothing to settle. Errors: *LimitError.
	Admit(ctx context.Context, key string, tokens int64) (rates []Rate, settle func(used int64), err error)
}

// LimitError says that who asks has reached a limit. It is 429, which an overload is not.
type LimitError struct {
	Err        error // classified
	RetryAfter time.Duration
}

func (e *LimitError) Error() string { return e.Err.Error() }

// Unwrap returns the classified error.
func (e *LimitError) Unwrap() error { return e.Err }

// Code returns the code of the error in OpenAI's API.
func (*LimitError) Code() string { return codeLimit }

// estimate returns about how many tokens the prompt of a request has, and how many it takes in all.
func (c *call) estimate() (prompt, all int64) {
	if c.r.Form != nil {
		return 0, 0 // of a form, such as a recording, its length says nothing
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

// admit holds the request to the limits of who asks. The function it returns is called when the
// request has ended.
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

// used returns what the request took, as the worker told it, or else about.
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
