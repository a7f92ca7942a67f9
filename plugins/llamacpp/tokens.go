package llamacpp

import (
	"context"
	"net/http"
	"strings"

	"github.com/rbee-project/rbee/plugins/jinja"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

const (
	// spellers bounds the concurrent requests that only tokenize or detokenize: they take CPU time
	// from the engine, whose threads wait for each other.
	spellers = 1
	// maxSpelled bounds the text of such a request, in bytes, and its tokens. The engine cannot be
	// interrupted while it tokenizes.
	maxSpelled = 4 << 20
)

// speller waits for the turn of a request that only tokenizes. The caller ends the turn with done.
func (s *server) speller(ctx context.Context) (done func(), err error) {
	select {
	case s.spelling <- struct{}{}:
		return func() { <-s.spelling }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func tooLong(param string, n int, unit string) *openai.Error {
	return openai.NewError(http.StatusRequestEntityTooLarge, openai.TypeInvalidRequest, param, openai.CodeTooLarge, "%s has %d %s, and at most %d are read at once; split it", param, n, unit, maxSpelled)
}

// tokenize answers POST /tokenize.
func (s *server) tokenize(ctx context.Context, body []byte) (any, error) {
	req, err := openai.DecodeTokenize(body)
	if err != nil {
		return nil, err
	}
	size := 0
	for i, p := range req.Content {
		size += len(p.Text)
		if p.IsToken && (p.Token < 0 || int(p.Token) >= len(s.model.pieces)) {
			return nil, openai.Invalid("content", "content[%d] is the token %d; this model's tokens go from 0 to %d", i, p.Token, len(s.model.pieces)-1)
		}
	}
	if size > maxSpelled {
		return nil, tooLong("content", size, "bytes")
	}
	done, err := s.speller(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	tokens := []token{}
	for i, p := range req.Content {
		if p.IsToken {
			tokens = append(tokens, p.Token)
			continue
		}
		tokens = append(tokens, s.model.tokens(p.Text, req.AddSpecial && i == 0, req.ParseSpecial == nil || *req.ParseSpecial)...)
	}
	if !req.WithPieces {
		return openai.TokenizeResponse{Tokens: tokens}, nil
	}
	pieces := make([]openai.TokenPiece, len(tokens))
	for i, t := range tokens {
		pieces[i] = openai.TokenPiece{ID: t, Piece: openai.Piece(s.model.spelled(t))}
	}
	return openai.TokenizeResponse{Tokens: pieces}, nil
}

// detokenize answers POST /detokenize.
func (s *server) detokenize(_ context.Context, body []byte) (any, error) {
	req, err := openai.DecodeDetokenize(body)
	if err != nil {
		return nil, err
	}
	if len(req.Tokens) > maxSpelled {
		return nil, tooLong("tokens", len(req.Tokens), "tokens")
	}
	var text strings.Builder
	for i, t := range req.Tokens {
		if t < 0 || int(t) >= len(s.model.pieces) {
			return nil, openai.Invalid("tokens", "tokens[%d] is %d; this model's tokens go from 0 to %d", i, t, len(s.model.pieces)-1)
		}
		piece := s.model.spelled(t)
		if text.Len()+len(piece) > maxBody { // a vocabulary can have long pieces
			return nil, tooLong("tokens", len(req.Tokens), "tokens")
		}
		text.WriteString(piece)
	}
	return openai.DetokenizeResponse{Content: strings.ToValidUTF8(text.String(), "\uFFFD")}, nil
}

// spelled returns the bytes of a token; for a control token, its text.
func (m *model) spelled(t token) string {
	if p := m.pieces[t]; p != "" {
		return p
	}
	return m.tokenText(t)
}

// promptOf returns the prompt of a conversation in the form of a chat completion.
func (s *server) promptOf(ctx context.Context, body []byte) (jinja.Text, error) {
	req, err := openai.DecodeChat(body)
	if err != nil {
		return jinja.Text{}, err
	}
	return s.model.chatText(ctx, req, s.now())
}

// applyTemplate answers POST /apply-template.
func (s *server) applyTemplate(ctx context.Context, body []byte) (any, error) {
	prompt, err := s.promptOf(ctx, body)
	if err != nil {
		return nil, err
	}
	return openai.TemplateResponse{Prompt: prompt.String()}, nil
}

// inputTokens answers POST /v1/chat/completions/input_tokens. The conversation may exceed the
// context, as clients ask to find that out.
func (s *server) inputTokens(ctx context.Context, body []byte) (any, error) {
	prompt, err := s.promptOf(ctx, body)
	if err != nil {
		return nil, err
	}
	if n := len(prompt.String()); n > maxSpelled {
		return nil, tooLong("messages", n, "bytes")
	}
	done, err := s.speller(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return openai.InputTokensResponse{Object: openai.ObjectInputTokens, InputTokens: len(s.model.chatTokens(prompt))}, nil
}
