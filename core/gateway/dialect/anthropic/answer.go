package anthropic

import (
	"encoding/json"
	"strconv"

	"github.com/rbee-project/rbee/core/gateway/dialect"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// The kinds of content blocks, also the state of an open block.
const (
	blockNone     = ""
	blockText     = "text"
	blockThinking = "thinking"
	blockTool     = "tool_use"
)

// encoder writes one answer as named events, or as one message.
type encoder struct {
	model  string // as the client wrote it
	id     string
	about  dialect.About
	thinks bool // the client asked for thinking: it is passed on

	begun  bool
	open   string // kind of the open block
	index  int    // index of that block, or of the next one
	call   int    // OpenAI's index of the open call
	calls  int    // calls seen so far
	finish string
	usage  *openai.Usage
}

// ContentType implements dialect.Encoder.
func (e *encoder) ContentType() string { return "text/event-stream" }

// Alive implements dialect.Encoder.
func (e *encoder) Alive(dst []byte) []byte {
	return append(dst, "event: ping\ndata: {\"type\":\"ping\"}\n\n"...)
}

// Error implements dialect.Encoder.
func (e *encoder) Error(dst []byte, err *openai.Error) []byte {
	_, f := failureOf(err, e.about)
	return event(dst, "error", f)
}

// event appends one event with v as its data.
func event(dst []byte, name string, v any) []byte {
	data, err := dialect.Marshal(v)
	if err != nil { // all values written here can be marshalled
		return dst
	}
	dst = append(append(dst, "event: "...), name...)
	dst = append(append(dst, "\ndata: "...), data...)
	return append(dst, "\n\n"...)
}

type usage struct {
	Input         int `json:"input_tokens"`
	Output        int `json:"output_tokens"`
	CacheCreation int `json:"cache_creation_input_tokens"`
	CacheRead     int `json:"cache_read_input_tokens"`
}

func usageOf(u *openai.Usage) usage {
	if u == nil {
		return usage{}
	}
	out := usage{Input: u.PromptTokens, Output: u.CompletionTokens}
	if u.PromptTokensDetails != nil { // Anthropic counts them separately
		out.CacheRead = u.PromptTokensDetails.CachedTokens
		out.Input -= out.CacheRead
	}
	return out
}

// answer is a whole message, and the first object of a stream.
type answer struct {
	ID           string  `json:"id"`
	Type         string  `json:"type"` // "message"
	Role         string  `json:"role"` // "assistant"
	Model        string  `json:"model"`
	Content      []any   `json:"content"`
	StopReason   *string `json:"stop_reason"`
	StopSequence *string `json:"stop_sequence"`
	Usage        usage   `json:"usage"`
}

func (e *encoder) message() answer {
	return answer{ID: e.id, Type: "message", Role: "assistant", Model: e.model, Content: []any{}, Usage: usageOf(e.usage)}
}

type textBlock struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

type thinkingBlock struct {
	Type      string `json:"type"`
	Thinking  string `json:"thinking"`
	Signature string `json:"signature"` // empty: only Anthropic's servers can sign
}

type toolBlock struct {
	Type  string          `json:"type"`
	ID    string          `json:"id"`
	Name  string          `json:"name"`
	Input json.RawMessage `json:"input"`
}

// begin appends the beginning of a stream, once.
func (e *encoder) begin(dst []byte) []byte {
	if e.begun {
		return dst
	}
	e.begun = true
	return event(dst, "message_start", map[string]any{"type": "message_start", "message": e.message()})
}

// enter closes the open block if its kind differs, and opens one of the given kind.
func (e *encoder) enter(dst []byte, kind string, body any) []byte {
	if e.open == kind && kind != blockTool {
		return dst
	}
	dst = e.leave(dst)
	e.open = kind
	return event(dst, "content_block_start", map[string]any{"type": "content_block_start", "index": e.index, "content_block": body})
}

func (e *encoder) leave(dst []byte) []byte {
	if e.open == blockNone {
		return dst
	}
	dst = event(dst, "content_block_stop", map[string]any{"type": "content_block_stop", "index": e.index})
	e.open = blockNone
	e.index++
	return dst
}

// delta appends an addition to the open block. It is hand-written, as every token passes through
// it.
func (e *encoder) delta(dst []byte, kind, field, text string) []byte {
	dst = append(dst, "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":"...)
	dst = strconv.AppendInt(dst, int64(e.index), 10)
	dst = append(dst, `,"delta":{"type":"`+kind+`","`+field+`":`...)
	dst = openai.AppendString(dst, text)
	return append(dst, "}}\n\n"...)
}

// Chunk implements dialect.Encoder.
func (e *encoder) Chunk(dst []byte, c dialect.Chunk) []byte {
	dst = e.begin(dst)
	if c.Reasoning != "" && e.thinks {
		dst = e.enter(dst, blockThinking, thinkingBlock{Type: blockThinking})
		dst = e.delta(dst, "thinking_delta", "thinking", c.Reasoning)
	}
	if c.Text != "" {
		dst = e.enter(dst, blockText, textBlock{Type: blockText})
		dst = e.delta(dst, "text_delta", "text", c.Text)
	}
	for _, p := range c.Calls {
		if e.open != blockTool || p.Index != e.call {
			if e.calls == dialect.MaxCalls {
				continue
			}
			e.calls++
			e.call = p.Index
			dst = e.enter(dst, blockTool, toolBlock{Type: blockTool, ID: p.ID, Name: p.Name, Input: json.RawMessage("{}")})
		}
		if p.Arguments != "" {
			dst = e.delta(dst, "input_json_delta", "partial_json", p.Arguments)
		}
	}
	if c.Finish != "" {
		e.finish = c.Finish
	}
	if c.Usage != nil {
		e.usage = c.Usage
	}
	return dst
}

// End implements dialect.Encoder.
func (e *encoder) End(dst []byte) []byte {
	dst = e.leave(e.begin(dst))
	dst = event(dst, "message_delta", map[string]any{
		"type": "message_delta", "delta": map[string]any{"stop_reason": reason(e.finish), "stop_sequence": nil}, "usage": usageOf(e.usage),
	})
	return event(dst, "message_stop", map[string]any{"type": "message_stop"})
}

// reason translates a finish reason. Workers do not report which stop sequence ended an answer, so
// those answers also get end_turn.
func reason(finish string) string {
	switch finish {
	case openai.FinishLength:
		return "max_tokens"
	case openai.FinishToolCalls:
		return "tool_use"
	}
	return "end_turn"
}

// Whole implements dialect.Encoder.
func (e *encoder) Whole(a dialect.Answer) ([]byte, error) {
	e.usage = a.Usage
	m := e.message()
	if a.Reasoning != "" && e.thinks {
		m.Content = append(m.Content, thinkingBlock{Type: blockThinking, Thinking: a.Reasoning})
	}
	if a.Text != "" {
		m.Content = append(m.Content, textBlock{Type: blockText, Text: a.Text})
	}
	for _, c := range a.Calls {
		m.Content = append(m.Content, toolBlock{Type: blockTool, ID: c.ID, Name: c.Name, Input: dialect.Object(c.Arguments)})
	}
	why := reason(a.Finish)
	m.StopReason = &why
	b, err := dialect.Marshal(m)
	return append(b, '\n'), err
}
