package openai

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"
)

// ObjectInputTokens is the object of an InputTokensResponse.
const ObjectInputTokens = "response.input_tokens"

// TokenizeRequest is the body of llama-server's POST /tokenize; OpenAI has no such route.
type TokenizeRequest struct {
	Model        string    `json:"model"`
	Content      MixedText `json:"content"`
	AddSpecial   bool      `json:"add_special,omitempty"`   // add the tokens that begin and end a prompt of the model
	ParseSpecial *bool     `json:"parse_special,omitempty"` // parse the texts of control tokens as those tokens; nil: true
	WithPieces   bool      `json:"with_pieces,omitempty"`   // also return the bytes of each token
}

// MixedText is a text in parts, some of which are already tokens. On the wire it is a string, or a
// list of strings and token ids.
type MixedText []MixedPart

// MixedPart is one part of a MixedText: a token if IsToken is set, otherwise a text.
type MixedPart struct {
	Text    string
	Token   int32
	IsToken bool
}

// UnmarshalJSON reads a string, a list of strings and token ids, or null.
func (m *MixedText) UnmarshalJSON(b []byte) error {
	*m = nil
	switch b[0] {
	case 'n':
		return nil
	case '"':
		part := MixedPart{}
		err := json.Unmarshal(b, &part.Text)
		*m = MixedText{part}
		return err
	case '[':
		var list []json.RawMessage
		if err := json.Unmarshal(b, &list); err != nil {
			return err
		}
		out := make(MixedText, len(list))
		for i, raw := range list {
			if err := out[i].read(raw); err != nil {
				return err
			}
		}
		*m = out
		return nil
	}
	return typeError[MixedText](jsonKind(b))
}

func (p *MixedPart) read(raw []byte) error {
	if raw[0] == '"' {
		return json.Unmarshal(raw, &p.Text)
	}
	p.IsToken = true
	if json.Unmarshal(raw, &p.Token) != nil || raw[0] == 'n' {
		return typeError[MixedText]("array with something else than strings and token ids")
	}
	return nil
}

// MarshalJSON writes the simplest form that fits.
func (m MixedText) MarshalJSON() ([]byte, error) {
	if len(m) == 1 && !m[0].IsToken {
		return json.Marshal(m[0].Text)
	}
	list := make([]any, len(m))
	for i, p := range m {
		list[i] = p.Text
		if p.IsToken {
			list[i] = p.Token
		}
	}
	return json.Marshal(list)
}

// TokenizeResponse is the response of POST /tokenize.
type TokenizeResponse struct {
	Tokens any `json:"tokens"` // []int32, or []TokenPiece if pieces were requested
}

// TokenPiece is a token with its bytes.
type TokenPiece struct {
	ID    int32 `json:"id"`
	Piece Piece `json:"piece"`
}

// Piece holds a token's bytes. On the wire it is a string, or a list of bytes if it is not valid
// UTF-8, such as a part of a character.
type Piece string

// MarshalJSON writes a string or a list of numbers.
func (p Piece) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(p)) {
		return json.Marshal(string(p))
	}
	numbers := make([]int, len(p))
	for i := range len(p) {
		numbers[i] = int(p[i])
	}
	return json.Marshal(numbers)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (p *Piece) UnmarshalJSON(b []byte) error {
	if b[0] == '"' {
		return json.Unmarshal(b, (*string)(p))
	}
	var numbers []uint16 // not []uint8, which encoding/json reads as base64
	if err := json.Unmarshal(b, &numbers); err != nil {
		return err
	}
	raw := make([]byte, len(numbers))
	for i, n := range numbers {
		raw[i] = byte(n)
	}
	*p = Piece(raw)
	return nil
}

// DetokenizeRequest is the body of POST /detokenize.
type DetokenizeRequest struct {
	Model  string  `json:"model"`
	Tokens []int32 `json:"tokens"`
}

// DetokenizeResponse is the response of POST /detokenize.
type DetokenizeResponse struct {
	Content string `json:"content"`
}

// TemplateResponse is the response of POST /apply-template, whose body is a ChatRequest: the prompt
// that the model would receive.
type TemplateResponse struct {
	Prompt string `json:"prompt"`
}

// InputTokensResponse is the response of POST /v1/chat/completions/input_tokens, whose body is a
// ChatRequest: the number of prompt tokens.
type InputTokensResponse struct {
	Object      string `json:"object"` // ObjectInputTokens
	InputTokens int    `json:"input_tokens"`
}

// DecodeTokenize reads and validates the body of POST /tokenize. Errors: *Error.
func DecodeTokenize(body []byte) (*TokenizeRequest, error) {
	var r TokenizeRequest
	if err := decode(body, &r); err != nil {
		return nil, err
	}
	if r.Content == nil {
		return nil, Invalid("content", "content is missing: send a text")
	}
	return &r, nil
}

// DecodeDetokenize reads and validates the body of POST /detokenize. Errors: *Error.
func DecodeDetokenize(body []byte) (*DetokenizeRequest, error) {
	var r DetokenizeRequest
	if err := decode(body, &r); err != nil {
		return nil, err
	}
	if r.Tokens == nil {
		return nil, Invalid("tokens", "tokens is missing: send a list of token ids")
	}
	return &r, nil
}

// isNull reports whether raw is empty or null.
func isNull(raw []byte) bool { return len(raw) == 0 || bytes.Equal(raw, []byte("null")) }
