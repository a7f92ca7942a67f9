package api

import (
	"net/http"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// plain returns the handler of a route that needs no slot.
func plain[T any](s *server, decode func([]byte) (*T, error), answer func(*T) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		req := decoded(s, w, r, decode)
		if req == nil {
			return
		}
		v, err := answer(req)
		if err != nil {
			s.refuse(w, err)
			return
		}
		s.write(w, v)
	}
}

func (s *server) tokenize(req *openai.TokenizeRequest) (any, error) {
	if req.WithPieces {
		return nil, openai.NotSupported("with_pieces", "with_pieces is not supported by this worker; leave it out")
	}
	tokens := []int32{}
	for _, p := range req.Content {
		if p.IsToken {
			tokens = append(tokens, p.Token)
			continue
		}
		more, err := s.o.Tokenizer.Tokenize(p.Text)
		if err != nil {
			return nil, err
		}
		tokens = append(tokens, more...)
	}
	return openai.TokenizeResponse{Tokens: tokens}, nil
}

func (s *server) detokenize(req *openai.DetokenizeRequest) (any, error) {
	text, err := s.o.Tokenizer.Detokenize(req.Tokens)
	return openai.DetokenizeResponse{Content: text}, err
}

func (s *server) template(req *openai.ChatRequest) (any, error) {
	prompt, err := Transcript(req.Messages)
	return openai.TemplateResponse{Prompt: prompt}, err
}

func (s *server) inputTokens(req *openai.ChatRequest) (any, error) {
	prompt, err := Transcript(req.Messages)
	if err != nil {
		return nil, err
	}
	n, err := s.countTokens(prompt)
	return openai.InputTokensResponse{Object: openai.ObjectInputTokens, InputTokens: n}, err
}
