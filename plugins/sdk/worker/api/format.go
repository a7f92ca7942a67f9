package api

import "github.com/rbee-project/rbee/plugins/sdk/openai"

// format encodes an answer for one of the two APIs.
type format interface {
	first() any              // the event before the first text; nil: none
	text(text string) []byte // the event for a text, valid until the next call
	finish(reason string) any
	usage(u *openai.Usage) any
	whole(text, reason string, u *openai.Usage) any
}

type chatFormat struct {
	chunk  openai.ChatChunk
	chunks *openai.Chunks
}

func newChatFormat(model string) *chatFormat {
	c := openai.ChatChunk{ID: newID("chatcmpl-"), Object: openai.ObjectChatChunk, Created: now(), Model: model}
	return &chatFormat{chunk: c, chunks: openai.NewChatChunks(c.ID, c.Created, model)}
}

func (f *chatFormat) with(choices ...openai.ChunkChoice) openai.ChatChunk {
	c := f.chunk
	c.Choices = append([]openai.ChunkChoice{}, choices...)
	return c
}

func (f *chatFormat) first() any {
	return f.with(openai.ChunkChoice{Delta: openai.Delta{Role: "assistant", Content: new("")}})
}

func (f *chatFormat) text(text string) []byte { return f.chunks.Text(text) }

func (f *chatFormat) finish(reason string) any {
	return f.with(openai.ChunkChoice{FinishReason: &reason})
}

func (f *chatFormat) usage(u *openai.Usage) any {
	c := f.with()
	c.Usage = u
	return c
}

func (f *chatFormat) whole(text, reason string, u *openai.Usage) any {
	return openai.ChatResponse{
		ID: f.chunk.ID, Object: openai.ObjectChat, Created: f.chunk.Created, Model: f.chunk.Model, Usage: u,
		Choices: []openai.ChatChoice{{Message: openai.AnswerMessage{Role: "assistant", Content: &text}, FinishReason: reason}},
	}
}

type textFormat struct {
	answer openai.CompletionResponse
	chunks *openai.Chunks
}

func newTextFormat(model string) *textFormat {
	c := openai.CompletionResponse{ID: newID("cmpl-"), Object: openai.ObjectCompletion, Created: now(), Model: model}
	return &textFormat{answer: c, chunks: openai.NewCompletionChunks(c.ID, c.Created, model)}
}

func (f *textFormat) with(u *openai.Usage, choices ...openai.CompletionChoice) openai.CompletionResponse {
	c := f.answer
	c.Usage, c.Choices = u, append([]openai.CompletionChoice{}, choices...)
	return c
}

func (f *textFormat) first() any { return nil }

func (f *textFormat) text(text string) []byte { return f.chunks.Text(text) }

func (f *textFormat) finish(reason string) any {
	return f.with(nil, openai.CompletionChoice{FinishReason: &reason})
}

func (f *textFormat) usage(u *openai.Usage) any { return f.with(u) }

func (f *textFormat) whole(text, reason string, u *openai.Usage) any {
	return f.with(u, openai.CompletionChoice{Text: text, FinishReason: &reason})
}
