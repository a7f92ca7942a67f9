package ollama

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/rbee-project/rbee/core/gateway/dialect"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// encoder writes one answer as lines of JSON, or as one object.
type encoder struct {
	model    string // as the client wrote it
	chat     bool   // /api/chat, else /api/generate
	loadOnly bool   // load request: the answer has no text
	unloads  bool   // and unloads the model afterwards
	now      func() time.Time

	began  time.Time
	first  time.Time // zero: nothing arrived yet
	calls  dialect.Calls
	finish string
	usage  *openai.Usage
}

func newEncoder(model string, about dialect.About, chat bool) *encoder {
	return &encoder{model: model, chat: chat, now: about.Now, began: about.Now()}
}

// ContentType implements dialect.Encoder.
func (e *encoder) ContentType() string { return "application/x-ndjson" }

// Alive implements dialect.Encoder: a line that is not part of an answer would confuse clients.
func (e *encoder) Alive(dst []byte) []byte { return dst }

// Error implements dialect.Encoder.
func (e *encoder) Error(dst []byte, err *openai.Error) []byte {
	_, line := Fail(err, dialect.About{})
	return append(dst, line...)
}

// Chunk implements dialect.Encoder. Tool calls are buffered until complete, as Ollama sends them in
// one piece.
func (e *encoder) Chunk(dst []byte, c dialect.Chunk) []byte {
	if e.first.IsZero() && (c.Text != "" || c.Reasoning != "" || len(c.Calls) > 0) {
		e.first = e.now()
	}
	e.calls.Add(c.Calls)
	if c.Finish != "" {
		e.finish = c.Finish
	}
	if c.Usage != nil {
		e.usage = c.Usage
	}
	if e.loadOnly || c.Text == "" && c.Reasoning == "" {
		return dst
	}
	dst = e.head(dst)
	if e.chat {
		dst = append(dst, `"message":{"role":"assistant","content":`...)
		dst = openai.AppendString(dst, c.Text)
	} else {
		dst = append(dst, `"response":`...)
		dst = openai.AppendString(dst, c.Text)
	}
	if c.Reasoning != "" {
		dst = append(dst, `,"thinking":`...)
		dst = openai.AppendString(dst, c.Reasoning)
	}
	if e.chat {
		dst = append(dst, '}')
	}
	return append(dst, `,"done":false}`+"\n"...)
}

func (e *encoder) head(dst []byte) []byte {
	dst = append(dst, `{"model":`...)
	dst = openai.AppendString(dst, e.model)
	dst = append(dst, `,"created_at":"`...)
	dst = e.now().UTC().AppendFormat(dst, time.RFC3339Nano)
	return append(dst, `",`...)
}

type toolCall struct {
	Function struct {
		Name      string          `json:"name"`
		Arguments json.RawMessage `json:"arguments"` // an object
	} `json:"function"`
}

func callsOf(list []dialect.Call) []byte {
	out := make([]toolCall, len(list))
	for i, c := range list {
		out[i].Function.Name, out[i].Function.Arguments = c.Name, dialect.Object(c.Arguments)
	}
	b, err := dialect.Marshal(out)
	if err != nil { // both parts can be marshalled
		return []byte("[]")
	}
	return b
}

// End implements dialect.Encoder.
func (e *encoder) End(dst []byte) []byte {
	calls := e.calls.List()
	if e.chat && len(calls) > 0 {
		dst = e.head(dst)
		dst = append(dst, `"message":{"role":"assistant","content":"","tool_calls":`...)
		dst = append(append(dst, callsOf(calls)...), `},"done":false}`+"\n"...)
	}
	return append(e.final(dst, "", "", nil), '\n')
}

// final appends the object that ends an answer, with the given text.
func (e *encoder) final(dst []byte, text, reasoning string, calls []dialect.Call) []byte {
	dst = e.head(dst)
	if e.chat {
		dst = append(dst, `"message":{"role":"assistant","content":`...)
	} else {
		dst = append(dst, `"response":`...)
	}
	dst = openai.AppendString(dst, text)
	if reasoning != "" {
		dst = append(dst, `,"thinking":`...)
		dst = openai.AppendString(dst, reasoning)
	}
	if e.chat {
		if len(calls) > 0 {
			dst = append(append(dst, `,"tool_calls":`...), callsOf(calls)...)
		}
		dst = append(dst, '}')
	}
	dst = append(dst, `,"done":true,"done_reason":`...)
	dst = openai.AppendString(dst, e.reason())
	end := e.now()
	first := e.first
	if first.IsZero() { // clients divide by eval_duration
		first = e.began
	}
	for _, d := range []struct {
		name string
		took time.Duration
	}{{"total_duration", end.Sub(e.began)}, {"load_duration", 0}} {
		dst = append(append(dst, `,"`+d.name+`":`...), strconv.FormatInt(int64(d.took), 10)...)
	}
	if !e.loadOnly && e.usage != nil {
		for _, n := range []struct {
			name string
			v    int64
		}{
			{"prompt_eval_count", int64(e.usage.PromptTokens)},
			{"prompt_eval_duration", int64(first.Sub(e.began))},
			{"eval_count", int64(e.usage.CompletionTokens)},
			{"eval_duration", int64(end.Sub(first))},
		} {
			dst = append(append(dst, `,"`+n.name+`":`...), strconv.FormatInt(n.v, 10)...)
		}
	}
	return append(dst, '}')
}

func (e *encoder) reason() string {
	switch {
	case e.unloads:
		return "unload"
	case e.loadOnly:
		return "load"
	case e.finish == openai.FinishLength:
		return "length"
	}
	return "stop" // also after tool calls
}

// Whole implements dialect.Encoder.
func (e *encoder) Whole(a dialect.Answer) ([]byte, error) {
	e.finish, e.usage = a.Finish, a.Usage
	if e.loadOnly {
		a = dialect.Answer{}
	}
	return append(e.final(nil, a.Text, a.Reasoning, a.Calls), '\n'), nil
}
