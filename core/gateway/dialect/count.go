package dialect

import (
	"errors"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// Count is the Encoder of a route that returns the number of tokens of a request, never as a
// stream. The zero value is ready.
type Count struct {
	Object string // object type of the answer; empty: none
	Fail   func(e *openai.Error, about About) (status int, body []byte)
	About  About
}

// ContentType implements Encoder.
func (Count) ContentType() string { return "application/json" }

// Chunk implements Encoder.
func (Count) Chunk(dst []byte, _ Chunk) []byte { return dst }

// End implements Encoder.
func (Count) End(dst []byte) []byte { return append(dst, '\n') }

// Alive implements Encoder. Whitespace before a JSON value has no meaning.
func (Count) Alive(dst []byte) []byte { return append(dst, '\n') }

// Error implements Encoder.
func (c Count) Error(dst []byte, e *openai.Error) []byte {
	_, body := c.Fail(e, c.About)
	return append(dst, body...)
}

// Whole implements Encoder.
func (c Count) Whole(a Answer) ([]byte, error) {
	if a.InputTokens == nil {
		return nil, errors.New("the worker's answer has no input_tokens")
	}
	return Marshal(struct {
		Object      string `json:"object,omitempty"`
		InputTokens int    `json:"input_tokens"`
	}{c.Object, *a.InputTokens})
}
