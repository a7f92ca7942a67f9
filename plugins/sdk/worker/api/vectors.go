package api

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/http"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

func (s *server) embeddings(w http.ResponseWriter, r *http.Request) {
	req := decoded(s, w, r, openai.DecodeEmbedding)
	if req == nil {
		return
	}
	texts, err := s.textsOf(req)
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.o.Gate.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, err := s.embed(r.Context(), texts, req.EncodingFormat == "base64")
		if err != nil {
			s.refuse(w, err)
			return
		}
		s.write(w, answer)
	})).ServeHTTP(w, r)
}

// textsOf returns the texts of a request, and rejects features that the Embedder interface does not
// cover.
func (s *server) textsOf(req *openai.EmbeddingRequest) ([]string, error) {
	switch {
	case req.Dimensions != nil:
		return nil, openai.NotSupported("dimensions", "dimensions is not supported by this worker; leave it out")
	case req.TruncatePromptTokens != nil:
		return nil, openai.NotSupported("truncate_prompt_tokens", "truncate_prompt_tokens is not supported by this worker; send shorter texts")
	case req.Input.Texts != nil:
		return req.Input.Texts, nil
	case s.o.Tokenizer == nil:
		return nil, openai.NotSupported("input", "token ids are not supported by this worker; send texts")
	}
	texts := make([]string, len(req.Input.Tokens))
	for i, tokens := range req.Input.Tokens {
		text, err := s.o.Tokenizer.Detokenize(tokens)
		if err != nil {
			return nil, err
		}
		texts[i] = text
	}
	return texts, nil
}

func (s *server) embed(ctx context.Context, texts []string, coded bool) (*openai.EmbeddingResponse, error) {
	used := &openai.EmbeddingUsage{}
	for _, text := range texts {
		n, err := s.countTokens(text)
		if err != nil {
			return nil, err
		}
		used.PromptTokens += n
	}
	used.TotalTokens = used.PromptTokens
	vectors, err := s.o.Embedder.Embed(ctx, texts)
	switch {
	case err != nil:
		return nil, err
	case len(vectors) != len(texts):
		return nil, fmt.Errorf("the model made %d vectors of %d texts", len(vectors), len(texts))
	}
	out := &openai.EmbeddingResponse{Object: openai.ObjectList, Model: s.o.ModelID, Usage: used, Data: make([]openai.Embedding, len(texts))}
	for i, v := range vectors {
		if len(v) == 0 || len(v) != len(vectors[0]) {
			return nil, errors.New("the vectors are empty or differ in length")
		}
		out.Data[i] = openai.Embedding{Object: openai.ObjectEmbedding, Index: i, Embedding: v}
		if coded {
			out.Data[i].Embedding = inBase64(v)
		}
	}
	return out, nil
}

// inBase64 returns a vector in OpenAI's base64 form: little-endian float32.
func inBase64(v []float32) string {
	b := make([]byte, 0, 4*len(v))
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return base64.StdEncoding.EncodeToString(b)
}
