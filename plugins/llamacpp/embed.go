package llamacpp

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/native"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

const (
	// maxEmbedTokens bounds a text, and the total of the texts in one step: the memory of a step
	// grows with it.
	maxEmbedTokens = 2048
	// embedTexts bounds the texts read in one step.
	embedTexts = 16
)

// embedder answers embedding requests one step at a time. The first request creates its context, so
// a model that only chats does not pay for it.
type embedder struct {
	model   *native.Model
	pooling string
	limit   int // tokens of a text
	places  int // requests that may wait or run

	threads atomic.Int32 // applied at the next step

	turn     chan struct{} // capacity 1; its holder may use the context
	stopping chan struct{} // closed when no further step may begin

	mu      sync.Mutex // guards below
	waiting int

	ctx *native.Embedder // nil until created; used by the holder of turn
}

// newEmbedder returns nil for a model that has neither embeddings nor scores. limit bounds the
// tokens of a text.
func newEmbedder(loaded *native.Model, conf config, limit, threads int) *embedder {
	pooling := loaded.Pooling()
	if pooling != native.Rank && conf.Pooling != poolingOfModel {
		pooling = conf.Pooling
	}
	if pooling == "" {
		return nil
	}
	e := &embedder{
		model: loaded, pooling: pooling, limit: limit, places: conf.Queue + 1,
		turn: make(chan struct{}, 1), stopping: make(chan struct{}),
	}
	e.threads.Store(int32(threads))
	return e
}

// ranks reports whether the model scores texts instead of embedding them.
func (e *embedder) ranks() bool { return e.pooling == native.Rank }

// open creates the context and reads one token, so that a model file that crashes the engine does
// so before the first request.
func (e *embedder) open() error {
	if err := e.makeLocked(); err != nil {
		return err
	}
	_, err := e.ctx.Embed([][]token{{max(0, e.model.BOS())}})
	return err
}

// makeLocked creates the context. The caller holds the turn.
func (e *embedder) makeLocked() (err error) {
	if e.ctx == nil {
		e.ctx, err = e.model.NewEmbedder(e.limit, min(embedTexts, e.limit), int(e.threads.Load()), e.pooling)
	}
	return err
}

// load returns the number of waiting and running requests.
func (e *embedder) load() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.waiting
}

// stop prevents further steps from beginning.
func (e *embedder) stop() {
	if e != nil {
		close(e.stopping)
	}
}

// enter takes a place, which a request keeps until all its texts are read, so that a started
// request is not refused halfway. The caller releases it with leave.
func (e *embedder) enter() *openai.Error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.waiting >= e.places {
		return openai.NewError(http.StatusServiceUnavailable, openai.TypeUnavailable, "", openai.CodeOverloaded, "%d requests are waiting for their texts to be read; try again later", e.places-1)
	}
	e.waiting++
	return nil
}

func (e *embedder) leave() {
	e.mu.Lock()
	e.waiting--
	e.mu.Unlock()
}

// begin waits for the turn of a step. The caller must hold a place, and calls end after the step.
func (e *embedder) begin(ctx context.Context) *openai.Error {
	select {
	case <-e.stopping:
		return stopping()
	default:
	}
	select {
	case e.turn <- struct{}{}:
		return nil
	case <-e.stopping:
		return stopping()
	case <-ctx.Done():
		return openai.NewError(http.StatusServiceUnavailable, openai.TypeUnavailable, "", "", "the client is gone")
	}
}

func (e *embedder) end() { <-e.turn }

// free frees the context. The embedder must not be used afterwards.
func (e *embedder) free() error {
	if e == nil || e.ctx == nil {
		return nil
	}
	return e.ctx.Free()
}

// embed returns the vectors of texts, each normalized to length one. The texts must be within the
// limit.
func (e *embedder) embed(ctx context.Context, texts [][]token) ([][]float32, *openai.Error) {
	if err := e.enter(); err != nil {
		return nil, err
	}
	defer e.leave()
	var out [][]float32
	for len(texts) > 0 {
		n, tokens := 0, 0
		for n < min(len(texts), embedTexts) && tokens+len(texts[n]) <= e.limit {
			tokens += len(texts[n])
			n++
		}
		vectors, err := e.step(ctx, texts[:n])
		if err != nil {
			return nil, err
		}
		out, texts = append(out, vectors...), texts[n:]
	}
	return out, nil
}

// step reads some texts. Other requests get their turn in between, so a long list does not hold
// them up.
func (e *embedder) step(ctx context.Context, texts [][]token) ([][]float32, *openai.Error) {
	if err := e.begin(ctx); err != nil {
		return nil, err
	}
	defer e.end()
	if err := e.makeLocked(); err != nil {
		return nil, engineFailed(err.Error())
	}
	e.ctx.SetThreads(int(e.threads.Load()))
	vectors, err := e.ctx.Embed(texts)
	if err != nil {
		return nil, engineFailed(err.Error())
	}
	for _, v := range vectors {
		for _, x := range v {
			if math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) { // not representable in JSON
				return nil, engineFailed("it computed a vector that is not one of numbers")
			}
		}
	}
	return vectors, nil
}

// normalize scales a vector to length one, as OpenAI's are. It leaves a zero vector unchanged.
func normalize(v []float32) {
	sum := 0.0
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	if sum == 0 {
		return
	}
	scale := float32(1 / math.Sqrt(sum))
	for i := range v {
		v[i] *= scale
	}
}

// embeddings answers POST /v1/embeddings.
func (s *server) embeddings(ctx context.Context, body []byte) (any, error) {
	req, err := openai.DecodeEmbedding(body)
	if err != nil {
		return nil, err
	}
	return s.embed(ctx, req)
}

func (s *server) embed(ctx context.Context, req *openai.EmbeddingRequest) (*openai.EmbeddingResponse, error) {
	e := s.embedder
	if e == nil {
		return nil, openai.NotSupported("model", "this model has no embeddings: its file names no pooling; set pooling in the worker's configuration to make them all the same")
	}
	if e.ranks() {
		return nil, openai.NotSupported("model", "this model scores texts and has no embeddings of them; use /v1/rerank")
	}
	size := e.model.EmbeddingSize()
	if req.Dimensions != nil && int(*req.Dimensions) > size {
		return nil, openai.Invalid("dimensions", "dimensions is %d, and the vectors of this model have %d", *req.Dimensions, size)
	}
	texts, err := s.embedTokens(req)
	if err != nil {
		return nil, err
	}
	vectors, failed := e.embed(ctx, texts)
	if failed != nil {
		return nil, failed
	}
	out := &openai.EmbeddingResponse{Object: openai.ObjectList, Model: s.modelID, Usage: &openai.EmbeddingUsage{}}
	for i, v := range vectors {
		if req.Dimensions != nil && *req.Dimensions > 0 {
			v = v[:*req.Dimensions]
		}
		normalize(v)
		item := openai.Embedding{Object: openai.ObjectEmbedding, Index: i, Embedding: v}
		if req.EncodingFormat == "base64" {
			item.Embedding = encodeVector(v)
		}
		out.Data = append(out.Data, item)
		out.Usage.PromptTokens += len(texts[i])
	}
	out.Usage.TotalTokens = out.Usage.PromptTokens
	return out, nil
}

// encodeVector encodes a vector as OpenAI does: base64 of little-endian float32.
func encodeVector(v []float32) string {
	b := make([]byte, 0, 4*len(v))
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return base64.StdEncoding.EncodeToString(b)
}

// embedTokens tokenizes each input; none may be empty or too long.
func (s *server) embedTokens(req *openai.EmbeddingRequest) ([][]token, error) {
	e := s.embedder
	limit := e.limit
	cut := req.TruncatePromptTokens != nil
	if cut && *req.TruncatePromptTokens > 0 {
		limit = min(limit, int(*req.TruncatePromptTokens))
	}
	var out [][]token
	add := func(tokens []token) error {
		where := fmt.Sprintf("input[%d]", len(out))
		if len(tokens) == 0 {
			return openai.Invalid("input", "%s is empty", where)
		}
		if len(tokens) > limit && !cut {
			return openai.NewError(http.StatusBadRequest, openai.TypeContextExceeded, "input", openai.CodeContextLength, "%s has %d tokens, and this worker reads at most %d of a text; shorten it or split it", where, len(tokens), limit)
		}
		out = append(out, s.model.cut(tokens, limit))
		return nil
	}
	for i, text := range req.Input.Texts {
		if text == "" {
			return nil, openai.Invalid("input", "input[%d] is empty", i)
		}
		if most := e.limit * max(1, s.model.maxPiece) * 4; len(text) > most {
			if !cut {
				return nil, openai.NewError(http.StatusBadRequest, openai.TypeContextExceeded, "input", openai.CodeContextLength, "input[%d] has %d bytes, and this worker reads at most %d tokens of a text; shorten it or split it", i, len(text), limit)
			}
			text = strings.ToValidUTF8(text[:most], "")
		}
		if err := add(s.model.tokens(text, true, false)); err != nil {
			return nil, err
		}
	}
	for i, list := range req.Input.Tokens {
		tokens := make([]token, len(list))
		for j, t := range list {
			if t < 0 || int(t) >= len(s.model.pieces) {
				return nil, openai.Invalid("input", "input[%d] has the token %d; this model's tokens go from 0 to %d", i, t, len(s.model.pieces)-1)
			}
			tokens[j] = t
		}
		if err := add(tokens); err != nil {
			return nil, err
		}
	}
	if len(out) == 0 {
		return nil, openai.Invalid("input", "input is missing")
	}
	return out, nil
}
