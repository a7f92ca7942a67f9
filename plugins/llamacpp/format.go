package llamacpp

import (
	"encoding/json"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// format puts an answer into the shape of one of the two APIs.
type format interface {
	first() any                // the chunk before the first text; nil: none
	tokens(list []shownToken)  // says which tokens the next text, or the whole one, shows
	text(text string) []byte   // the JSON of a chunk, valid until the next call
	finish(reason string) any  // the chunk that ends the answer
	usage(u *openai.Usage) any // the chunk that follows it, where it was asked for
	whole(text, reason string, u *openai.Usage) any
}

type chatFormat struct {
	id      string
	created int64
	model   string
	chunks  *openai.Chunks
	vocab   *model
	shown   *openai.LogProbs // of the next text
}

func newChatFormat(id string, created int64, model string, vocab *model) *chatFormat {
	return &chatFormat{id: id, created: created, model: model, vocab: vocab, chunks: openai.NewChatChunks(id, created, model)}
}

func (f *chatFormat) chunk() openai.ChatChunk {
	return openai.ChatChunk{ID: f.id, Object: openai.ObjectChatChunk, Created: f.created, Model: f.model, Choices: []openai.ChunkChoice{}}
}

func (f *chatFormat) first() any {
	c := f.chunk()
	c.Choices = append(c.Choices, openai.ChunkChoice{Delta: openai.Delta{Role: "assistant", Content: new("")}})
	return c
}

func (f *chatFormat) tokens(list []shownToken) { f.shown = f.vocab.chatLogProbs(list) }

func (f *chatFormat) text(text string) []byte {
	if f.shown == nil {
		return f.chunks.Text(text)
	}
	c := f.chunk()
	c.Choices = append(c.Choices, openai.ChunkChoice{Delta: openai.Delta{Content: &text}, LogProbs: f.shown})
	f.shown = nil
	return marshal(c)
}

// marshal returns the JSON of a chunk.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil { // numbers and strings always marshal
		return []byte("null")
	}
	return b
}

func (f *chatFormat) finish(reason string) any {
	c := f.chunk()
	c.Choices = append(c.Choices, openai.ChunkChoice{FinishReason: &reason})
	return c
}

func (f *chatFormat) usage(u *openai.Usage) any {
	c := f.chunk()
	c.Usage = u
	return c
}

func (f *chatFormat) whole(text, reason string, u *openai.Usage) any {
	return openai.ChatResponse{
		ID: f.id, Object: openai.ObjectChat, Created: f.created, Model: f.model, Usage: u,
		Choices: []openai.ChatChoice{{Message: openai.AnswerMessage{Role: "assistant", Content: &text}, LogProbs: f.shown, FinishReason: reason}},
	}
}

type textFormat struct {
	id      string
	created int64
	model   string
	chunks  *openai.Chunks
	vocab   *model
	shown   *openai.CompletionLogProbs // of the next text
	offset  int                        // characters of the texts before it
}

func newTextFormat(id string, created int64, model string, vocab *model) *textFormat {
	return &textFormat{id: id, created: created, model: model, vocab: vocab, chunks: openai.NewCompletionChunks(id, created, model)}
}

func (f *textFormat) response() openai.CompletionResponse {
	return openai.CompletionResponse{ID: f.id, Object: openai.ObjectCompletion, Created: f.created, Model: f.model, Choices: []openai.CompletionChoice{}}
}

func (f *textFormat) first() any { return nil }

func (f *textFormat) tokens(list []shownToken) {
	f.shown, f.offset = f.vocab.textLogProbs(list, f.offset)
}

func (f *textFormat) text(text string) []byte {
	if f.shown == nil {
		return f.chunks.Text(text)
	}
	c := f.response()
	c.Choices = append(c.Choices, openai.CompletionChoice{Text: text, LogProbs: f.shown})
	f.shown = nil
	return marshal(c)
}

func (f *textFormat) finish(reason string) any { return f.whole("", reason, nil) }

func (f *textFormat) usage(u *openai.Usage) any {
	c := f.response()
	c.Usage = u
	return c
}

func (f *textFormat) whole(text, reason string, u *openai.Usage) any {
	c := f.response()
	c.Choices = append(c.Choices, openai.CompletionChoice{Text: text, LogProbs: f.shown, FinishReason: &reason})
	c.Usage = u
	return c
}
