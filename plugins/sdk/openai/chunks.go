package openai

import (
	"encoding/json"
	"strconv"
	"unicode/utf8"
)

// Chunks encodes the text chunks of one stream without reflection and without allocating. It is not
// safe for concurrent use.
type Chunks struct {
	around         func(index int) (prefix, suffix string)
	prefix, suffix string
	buf            []byte
}

func newChunks(around func(index int) (prefix, suffix string)) *Chunks {
	c := &Chunks{around: around}
	c.prefix, c.suffix = around(0)
	return c
}

// Choice returns the Chunks for the choice with the given index in the same stream. c itself
// produces those of choice 0.
func (c *Chunks) Choice(index int) *Chunks {
	out := &Chunks{around: c.around}
	out.prefix, out.suffix = c.around(index)
	return out
}

// NewChatChunks returns the Chunks of one streamed chat completion.
func NewChatChunks(id string, created int64, model string) *Chunks {
	head := chunkHead(id, ObjectChatChunk, created, model)
	return newChunks(func(index int) (prefix, suffix string) {
		return head + `"choices":[{"index":` + strconv.Itoa(index) + `,"delta":{"content":`, `},"finish_reason":null}]}`
	})
}

// NewCompletionChunks returns the Chunks of one streamed legacy completion.
func NewCompletionChunks(id string, created int64, model string) *Chunks {
	head := chunkHead(id, ObjectCompletion, created, model)
	return newChunks(func(index int) (prefix, suffix string) {
		return head + `"choices":[{"text":`, `,"index":` + strconv.Itoa(index) + `,"logprobs":null,"finish_reason":null}]}`
	})
}

func chunkHead(id, object string, created int64, model string) string {
	return `{"id":` + quote(id) + `,"object":"` + object + `","created":` + strconv.FormatInt(created, 10) + `,"model":` + quote(model) + `,`
}

func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil { // a string always marshals
		return `""`
	}
	return string(b)
}

// Text returns the JSON of a chunk that adds text. It is valid until the next call.
func (c *Chunks) Text(text string) []byte {
	c.buf = append(c.buf[:0], c.prefix...)
	c.buf = AppendString(c.buf, text)
	c.buf = append(c.buf, c.suffix...)
	return c.buf
}

const hexDigits = "0123456789abcdef"

// AppendString appends s to b as a JSON string. Invalid UTF-8 becomes U+FFFD.
func AppendString(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			switch {
			case r == utf8.RuneError && n == 1:
				b = append(append(b, s[start:i]...), `\ufffd`...)
				start = i + n
			case r == '\u2028' || r == '\u2029': // some clients treat these as line breaks
				b = append(append(b, s[start:i]...), `\u202`...)
				b = append(b, hexDigits[r&0xf])
				start = i + n
			}
			i += n
			continue
		}
		if c >= 0x20 && c != '"' && c != '\\' {
			i++
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&0xf])
		}
		i++
		start = i
	}
	return append(append(b, s[start:]...), '"')
}
