package llamacpp

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/dialogue"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// format renders an answer in the shape of one of the APIs. Its answer has index 0 unless choice
// sets another.
type format interface {
	choice(index int) format                               // for another answer, of which nothing has been sent yet
	first() any                                            // the chunk before the first text; nil: none
	tokens(list []shownToken)                              // sets the tokens behind the next text, or behind the whole one
	timings(t *openai.Timings)                             // sets the timings of the next chunk, or of the whole answer
	text(text string, send func(chunk []byte) error) error // sends the chunks of a text, each valid during the call
	finish(reason string) []any                            // the chunks that end the answer
	usage(u *openai.Usage) any                             // the chunk after the end, if requested; nil: none
	whole(text, reason string, u *openai.Usage) any
}

type chatFormat struct {
	id      string
	created int64
	model   string
	index   int
	chunks  *openai.Chunks
	vocab   *model
	shown   *openai.LogProbs // for the next text
	times   *openai.Timings  // for the next chunk

	speech *speech
	parser *dialogue.Parser
}

func newChatFormat(id string, created int64, model string, vocab *model, t *speech) *chatFormat {
	return &chatFormat{id: id, created: created, model: model, vocab: vocab, chunks: openai.NewChatChunks(id, created, model), speech: t, parser: t.parser()}
}

func (f *chatFormat) choice(index int) format {
	out := newChatFormat(f.id, f.created, f.model, f.vocab, f.speech)
	out.index, out.chunks = index, f.chunks.Choice(index)
	return out
}

func (f *chatFormat) chunk() openai.ChatChunk {
	c := openai.ChatChunk{ID: f.id, Object: openai.ObjectChatChunk, Created: f.created, Model: f.model, Choices: []openai.ChunkChoice{}, Timings: f.times}
	f.times = nil
	return c
}

func (f *chatFormat) timings(t *openai.Timings) { f.times = t }

func (f *chatFormat) first() any {
	c := f.chunk()
	c.Choices = append(c.Choices, openai.ChunkChoice{Index: f.index, Delta: openai.Delta{Role: "assistant", Content: new("")}})
	return c
}

func (f *chatFormat) tokens(list []shownToken) {
	more := f.vocab.chatLogProbs(list)
	if f.shown != nil && more != nil { // their text was held back
		more.Content = append(f.shown.Content, more.Content...)
	}
	f.shown = more
}

func (f *chatFormat) text(text string, send func([]byte) error) error {
	for _, d := range f.parser.Push(text) {
		if err := send(f.delta(d)); err != nil {
			return err
		}
	}
	return nil
}

// delta returns the chunk for a piece of the answer.
func (f *chatFormat) delta(d dialogue.Delta) []byte {
	if d.Kind == dialogue.Content && f.shown == nil && f.times == nil {
		return f.chunks.Text(d.Text)
	}
	choice := openai.ChunkChoice{Index: f.index, Delta: f.deltaOf(d)}
	if d.Kind == dialogue.Content {
		choice.LogProbs, f.shown = f.shown, nil
	}
	c := f.chunk()
	c.Choices = append(c.Choices, choice)
	return marshal(c)
}

func (f *chatFormat) deltaOf(d dialogue.Delta) openai.Delta {
	call := openai.ToolFunction{Name: d.Name, Arguments: d.Text}
	switch {
	case d.Kind == dialogue.Content:
		return openai.Delta{Content: &d.Text}
	case d.Kind == dialogue.Reasoning:
		return openai.Delta{ReasoningContent: d.Text}
	case f.speech.old:
		return openai.Delta{FunctionCall: &call}
	case d.Kind == dialogue.Call:
		return openai.Delta{ToolCalls: []openai.ToolCall{{Index: &d.Index, ID: d.ID, Type: "function", Function: call}}}
	}
	return openai.Delta{ToolCalls: []openai.ToolCall{{Index: &d.Index, Function: call}}}
}

// reason returns the finish reason: a model that stops after calls is waiting for their results.
func (f *chatFormat) reason(reason string) string {
	switch {
	case reason != openai.FinishStop || f.parser.Calls() == 0:
		return reason
	case f.speech.old:
		return openai.FinishFunction
	}
	return openai.FinishToolCalls
}

// marshal returns the JSON of a chunk.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil { // numbers and strings always marshal
		return []byte("null")
	}
	return b
}

func (f *chatFormat) finish(reason string) []any {
	var out []any
	times := f.times // for the last chunk
	f.times = nil
	for _, d := range f.parser.Close() {
		out = append(out, json.RawMessage(slices.Clone(f.delta(d))))
	}
	reason = f.reason(reason)
	f.times = times
	c := f.chunk()
	c.Choices = append(c.Choices, openai.ChunkChoice{Index: f.index, LogProbs: f.shown, FinishReason: &reason})
	return append(out, c)
}

func (f *chatFormat) usage(u *openai.Usage) any {
	c := f.chunk()
	c.Usage = u
	return c
}

func (f *chatFormat) whole(text, reason string, u *openai.Usage) any {
	m := openai.AnswerMessage{Role: "assistant"}
	var content strings.Builder
	var calls []openai.ToolCall
	for _, d := range append(slices.Clone(f.parser.Push(text)), f.parser.Close()...) {
		switch d.Kind {
		case dialogue.Content:
			content.WriteString(d.Text)
		case dialogue.Reasoning:
			m.ReasoningContent += d.Text
		case dialogue.Call:
			calls = append(calls, openai.ToolCall{ID: d.ID, Type: "function", Function: openai.ToolFunction{Name: d.Name}})
		case dialogue.Arguments:
			calls[d.Index].Function.Arguments += d.Text
		}
	}
	if content.Len() > 0 || len(calls) == 0 {
		m.Content = new(content.String())
	}
	switch {
	case f.speech.old && len(calls) > 0:
		m.FunctionCall = &calls[0].Function
	default:
		m.ToolCalls = calls
	}
	return openai.ChatResponse{
		ID: f.id, Object: openai.ObjectChat, Created: f.created, Model: f.model, Usage: u, Timings: f.times,
		Choices: []openai.ChatChoice{{Index: f.index, Message: m, LogProbs: f.shown, FinishReason: f.reason(reason)}},
	}
}

type textFormat struct {
	id      string
	created int64
	model   string
	index   int
	chunks  *openai.Chunks
	vocab   *model
	shown   *openai.CompletionLogProbs // for the next text
	offset  int                        // characters in the texts so far
	times   *openai.Timings            // for the next chunk

	echo []string // the prompts to send before their answers; nil: none
	each int      // answers per prompt
	said string   // the echo of this answer
}

func newTextFormat(id string, created int64, model string, vocab *model) *textFormat {
	return &textFormat{id: id, created: created, model: model, vocab: vocab, chunks: openai.NewCompletionChunks(id, created, model)}
}

func (f *textFormat) choice(index int) format {
	out := newTextFormat(f.id, f.created, f.model, f.vocab)
	out.index, out.chunks = index, f.chunks.Choice(index)
	if out.echo, out.each = f.echo, f.each; f.echo != nil {
		out.said = f.echo[min(index/f.each, len(f.echo)-1)] // more answers may be generated than the client gets
	}
	return out
}

// echoes returns the texts of prompts, as the client sent them.
func (m *model) echoes(p openai.Prompt) []string {
	if p.Tokens == nil {
		return p.Texts
	}
	out := make([]string, len(p.Tokens))
	for i, tokens := range p.Tokens {
		var text strings.Builder
		for _, t := range tokens {
			text.WriteString(m.spelled(t))
		}
		out[i] = strings.ToValidUTF8(text.String(), "\uFFFD")
	}
	return out
}

func (f *textFormat) response() openai.CompletionResponse {
	c := openai.CompletionResponse{ID: f.id, Object: openai.ObjectCompletion, Created: f.created, Model: f.model, Choices: []openai.CompletionChoice{}, Timings: f.times}
	f.times = nil
	return c
}

func (f *textFormat) timings(t *openai.Timings) { f.times = t }

func (f *textFormat) first() any {
	if f.said == "" {
		return nil
	}
	c := f.response()
	c.Choices = append(c.Choices, openai.CompletionChoice{Index: f.index, Text: f.said})
	f.said = ""
	return c
}

func (f *textFormat) tokens(list []shownToken) {
	f.shown, f.offset = f.vocab.textLogProbs(list, f.offset)
}

func (f *textFormat) text(text string, send func([]byte) error) error {
	if f.shown == nil && f.times == nil {
		return send(f.chunks.Text(text))
	}
	c := f.response()
	c.Choices = append(c.Choices, openai.CompletionChoice{Index: f.index, Text: text, LogProbs: f.shown})
	f.shown = nil
	return send(marshal(c))
}

func (f *textFormat) finish(reason string) []any { return []any{f.whole("", reason, nil)} }

func (f *textFormat) usage(u *openai.Usage) any {
	c := f.response()
	c.Usage = u
	return c
}

func (f *textFormat) whole(text, reason string, u *openai.Usage) any {
	c := f.response()
	c.Choices = append(c.Choices, openai.CompletionChoice{Index: f.index, Text: f.said + text, LogProbs: f.shown, FinishReason: &reason})
	c.Usage = u
	return c
}
