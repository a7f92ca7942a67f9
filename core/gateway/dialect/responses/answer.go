package responses

import (
	"encoding/json"
	"slices"
	"strconv"

	"github.com/rbee-project/rbee/core/gateway/dialect"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// The states of a response and of its items.
const (
	inProgress = "in_progress"
	completed  = "completed"
	incomplete = "incomplete"
	failed     = "failed"
)

// The types of output items.
const (
	typeMessage   = "message"
	typeReasoning = "reasoning"
	typeCall      = "function_call"
)

// encoder writes one answer as named, numbered events, or as one response.
type encoder struct {
	store *Store
	in    *request
	items []item // conversation that the answer belongs to
	about dialect.About
	id    string
	at    int64 // seconds since 1970

	begun  bool
	seq    int64
	output []*output // completed items, then the open one
	open   bool
	call   int // OpenAI's index of the open call
	finish string
	usage  *openai.Usage
}

// output is one item of the answer.
type output struct {
	typ, id      string
	status       string
	text         []byte // text of a message or of reasoning
	callID, name string
	arguments    []byte
}

func newEncoder(store *Store, in *request, items []item, about dialect.About) *encoder {
	return &encoder{store: store, in: in, items: items, about: about, id: ID(about), at: about.Now().Unix()}
}

// ContentType implements dialect.Encoder.
func (e *encoder) ContentType() string { return "text/event-stream" }

// Alive implements dialect.Encoder. Clients of this API fail on events that they do not know, and
// on a comment followed by an empty line.
func (e *encoder) Alive(dst []byte) []byte { return append(dst, ": alive\n"...) }

func (o *output) MarshalJSON() ([]byte, error) {
	switch o.typ {
	case typeMessage:
		content := []any{}
		if len(o.text) > 0 || o.status != inProgress {
			content = append(content, textPart(string(o.text)))
		}
		return dialect.Marshal(map[string]any{"type": o.typ, "id": o.id, "status": o.status, "role": "assistant", "content": content})
	case typeReasoning:
		content := []any{}
		if len(o.text) > 0 {
			content = append(content, map[string]any{"type": "reasoning_text", "text": string(o.text)})
		}
		return dialect.Marshal(map[string]any{"type": o.typ, "id": o.id, "status": o.status, "summary": []any{}, "content": content})
	}
	return dialect.Marshal(map[string]any{
		"type": o.typ, "id": o.id, "status": o.status, "call_id": o.callID, "name": o.name, "arguments": string(o.arguments),
	})
}

func textPart(text string) map[string]any {
	return map[string]any{"type": "output_text", "text": text, "annotations": []any{}, "logprobs": []any{}}
}

// response returns the whole object, with the output so far.
func (e *encoder) response(status string, failure any) map[string]any {
	in := e.in
	out := map[string]any{
		"id": e.id, "object": "response", "created_at": e.at, "status": status, "background": false, "error": failure, "incomplete_details": nil,
		"instructions": in.Instructions, "max_output_tokens": in.MaxOutputTokens, "model": in.Model, "output": e.outputs(),
		"parallel_tool_calls": in.ParallelToolCalls == nil || *in.ParallelToolCalls, "previous_response_id": in.PreviousResponseID,
		"reasoning": map[string]any{"effort": nil, "summary": nil}, "store": e.stores(), "temperature": number(in.Temperature), "top_p": number(in.TopP),
		"text": map[string]any{"format": map[string]any{"type": "text"}}, "tool_choice": "auto", "tools": []any{}, "truncation": "disabled",
		"usage": nil, "user": nil, "metadata": map[string]any{}, "service_tier": "default",
	}
	if in.Reasoning != nil {
		out["reasoning"] = map[string]any{"effort": in.Reasoning.Effort, "summary": nil}
	}
	if in.Text.Format != nil {
		out["text"] = in.Text
	}
	if len(in.ToolChoice) > 0 && string(in.ToolChoice) != "null" {
		out["tool_choice"] = in.ToolChoice
	}
	if len(in.Tools) > 0 {
		out["tools"] = in.Tools
	}
	if len(in.Metadata) > 0 && string(in.Metadata) != "null" {
		out["metadata"] = in.Metadata
	}
	if status == incomplete {
		out["incomplete_details"] = map[string]any{"reason": "max_output_tokens"}
	}
	if status != inProgress && e.usage != nil {
		out["usage"] = usageOf(e.usage)
	}
	return out
}

func number(raw json.RawMessage) json.RawMessage {
	if len(raw) == 0 || string(raw) == "null" {
		return json.RawMessage("1") // the API's own default
	}
	return raw
}

func (e *encoder) outputs() []*output {
	if e.output == nil {
		return []*output{}
	}
	return e.output
}

func (e *encoder) stores() bool { return e.in.Store == nil || *e.in.Store }

func usageOf(u *openai.Usage) map[string]any {
	cached := 0
	if u.PromptTokensDetails != nil {
		cached = u.PromptTokensDetails.CachedTokens
	}
	return map[string]any{
		"input_tokens": u.PromptTokens, "input_tokens_details": map[string]int{"cached_tokens": cached},
		"output_tokens": u.CompletionTokens, "output_tokens_details": map[string]int{"reasoning_tokens": 0}, "total_tokens": u.TotalTokens,
	}
}

// event appends a named event; it adds the type and the sequence number to v.
func (e *encoder) event(dst []byte, name string, v map[string]any) []byte {
	v["type"], v["sequence_number"] = name, e.seq
	e.seq++
	data, err := dialect.Marshal(v)
	if err != nil { // all values written here were JSON before
		return dst
	}
	dst = append(append(dst, "event: "...), name...)
	dst = append(append(dst, "\ndata: "...), data...)
	return append(dst, "\n\n"...)
}

func (e *encoder) begin(dst []byte) []byte {
	if e.begun {
		return dst
	}
	e.begun = true
	dst = e.event(dst, "response.created", map[string]any{"response": e.response(inProgress, nil)})
	return e.event(dst, "response.in_progress", map[string]any{"response": e.response(inProgress, nil)})
}

// last returns the item begun last; there must be one.
func (e *encoder) last() *output { return e.output[len(e.output)-1] }

// enter returns the open item if it has the given type; otherwise it closes it and opens a new one.
func (e *encoder) enter(dst []byte, typ string, part dialect.CallPart) []byte {
	if e.open && e.last().typ == typ && (typ != typeCall || part.Index == e.call) {
		return dst
	}
	dst = e.leave(dst)
	n := len(e.output)
	prefix := map[string]string{typeMessage: "msg_", typeReasoning: "rs_", typeCall: "fc_"}[typ]
	o := &output{typ: typ, id: prefix + e.about.ID + "_" + strconv.Itoa(n), status: inProgress, callID: part.ID, name: part.Name}
	e.output, e.open, e.call = append(e.output, o), true, part.Index
	dst = e.event(dst, "response.output_item.added", map[string]any{"output_index": n, "item": o})
	if typ == typeMessage {
		dst = e.event(dst, "response.content_part.added", e.where(map[string]any{"part": textPart("")}))
	}
	return dst
}

// where adds the position of the open item's text.
func (e *encoder) where(v map[string]any) map[string]any {
	v["item_id"], v["output_index"], v["content_index"] = e.last().id, len(e.output)-1, 0
	return v
}

// leave closes the open item.
func (e *encoder) leave(dst []byte) []byte {
	if !e.open {
		return dst
	}
	e.open = false
	o := e.last()
	o.status = completed
	switch o.typ {
	case typeMessage:
		if e.finish == openai.FinishLength {
			o.status = incomplete
		}
		dst = e.event(dst, "response.output_text.done", e.where(map[string]any{"text": string(o.text), "logprobs": []any{}}))
		dst = e.event(dst, "response.content_part.done", e.where(map[string]any{"part": textPart(string(o.text))}))
	case typeReasoning:
		dst = e.event(dst, "response.reasoning_text.done", e.where(map[string]any{"text": string(o.text)}))
	case typeCall:
		dst = e.event(dst, "response.function_call_arguments.done", map[string]any{
			"item_id": o.id, "output_index": len(e.output) - 1, "name": o.name, "arguments": string(o.arguments),
		})
	}
	return e.event(dst, "response.output_item.done", map[string]any{"output_index": len(e.output) - 1, "item": o})
}

// delta appends an addition to the open item. It is hand-written, as every token passes through it.
func (e *encoder) delta(dst []byte, name, text string, content bool) []byte {
	dst = append(append(dst, "event: "...), name...)
	dst = append(append(append(dst, "\ndata: {\"type\":\""...), name...), `","sequence_number":`...)
	dst = strconv.AppendInt(dst, e.seq, 10)
	e.seq++
	dst = append(dst, `,"item_id":`...)
	dst = openai.AppendString(dst, e.last().id)
	dst = append(dst, `,"output_index":`...)
	dst = strconv.AppendInt(dst, int64(len(e.output)-1), 10)
	if content {
		dst = append(dst, `,"content_index":0`...)
	}
	if e.last().typ == typeMessage {
		dst = append(dst, `,"logprobs":[]`...)
	}
	dst = append(dst, `,"delta":`...)
	dst = openai.AppendString(dst, text)
	return append(dst, "}\n\n"...)
}

// Chunk implements dialect.Encoder.
func (e *encoder) Chunk(dst []byte, c dialect.Chunk) []byte {
	dst = e.begin(dst)
	if c.Finish != "" {
		e.finish = c.Finish
	}
	if c.Usage != nil {
		e.usage = c.Usage
	}
	if c.Reasoning != "" {
		dst = e.enter(dst, typeReasoning, dialect.CallPart{})
		e.last().text = append(e.last().text, c.Reasoning...)
		dst = e.delta(dst, "response.reasoning_text.delta", c.Reasoning, true)
	}
	if c.Text != "" {
		dst = e.enter(dst, typeMessage, dialect.CallPart{})
		e.last().text = append(e.last().text, c.Text...)
		dst = e.delta(dst, "response.output_text.delta", c.Text, true)
	}
	for _, p := range c.Calls {
		if p.Index < 0 || p.Index >= dialect.MaxCalls || len(e.output) > 2*dialect.MaxCalls {
			continue
		}
		dst = e.enter(dst, typeCall, p)
		if p.Arguments != "" {
			e.last().arguments = append(e.last().arguments, p.Arguments...)
			dst = e.delta(dst, "response.function_call_arguments.delta", p.Arguments, false)
		}
	}
	return dst
}

// End implements dialect.Encoder.
func (e *encoder) End(dst []byte) []byte {
	dst = e.leave(e.begin(dst))
	status := e.status()
	b, err := dialect.Marshal(e.response(status, nil))
	if err != nil { // all values written here were JSON before
		return dst
	}
	e.keep(b)
	return e.event(dst, "response."+status, map[string]any{"response": json.RawMessage(b)})
}

func (e *encoder) status() string {
	if e.finish == openai.FinishLength {
		return incomplete
	}
	return completed
}

// Error implements dialect.Encoder.
func (e *encoder) Error(dst []byte, err *openai.Error) []byte {
	dst = e.begin(dst)
	code := "server_error"
	if err.Code != nil && *err.Code != "" {
		code = *err.Code
	}
	return e.event(dst, "response.failed", map[string]any{"response": e.response(failed, map[string]any{"code": code, "message": err.Error()})})
}

// Whole implements dialect.Encoder.
func (e *encoder) Whole(a dialect.Answer) ([]byte, error) {
	e.finish, e.usage = a.Finish, a.Usage
	add := func(o *output) {
		o.status = completed
		e.output = append(e.output, o)
	}
	id := func(prefix string) string { return prefix + e.about.ID + "_" + strconv.Itoa(len(e.output)) }
	if a.Reasoning != "" {
		add(&output{typ: typeReasoning, id: id("rs_"), text: []byte(a.Reasoning)})
	}
	if a.Text != "" || len(a.Calls) == 0 {
		add(&output{typ: typeMessage, id: id("msg_"), text: []byte(a.Text)})
		e.last().status = e.status()
	}
	for _, c := range a.Calls {
		add(&output{typ: typeCall, id: id("fc_"), callID: c.ID, name: c.Name, arguments: []byte(c.Arguments)})
	}
	b, err := dialect.Marshal(e.response(e.status(), nil))
	if err == nil {
		e.keep(b)
	}
	return append(b, '\n'), err
}

// keep stores the conversation with the answer, unless the client opted out. Instructions are not
// part of it, as in OpenAI's API.
func (e *encoder) keep(response []byte) {
	if !e.stores() {
		return
	}
	items := append([]item{}, e.items...)
	for _, o := range e.output {
		switch o.typ {
		case typeMessage:
			content, err := dialect.Marshal(string(o.text))
			if err != nil {
				return
			}
			items = append(items, item{Type: typeMessage, Role: "assistant", Content: content})
		case typeReasoning:
			items = append(items, item{Type: typeReasoning, Summary: []part{{Type: "summary_text", Text: string(o.text)}}})
		case typeCall:
			items = append(items, item{Type: typeCall, CallID: o.callID, Name: o.name, Arguments: string(o.arguments)})
		}
	}
	e.store.put(e.id, e.about.Key, answer{Items: items, Inputs: len(e.items), Response: slices.Clip(slices.Clone(response))})
}
