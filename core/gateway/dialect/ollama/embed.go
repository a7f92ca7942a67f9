package ollama

import (
	"encoding/json"
	"time"

	"github.com/rbee-project/rbee/core/gateway/dialect"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// Embed is POST /api/embed, Embeddings the older POST /api/embeddings with one prompt.
var (
	Embed      = dialect.Dialect{Decode: decodeEmbed, Fail: Fail}
	Embeddings = dialect.Dialect{Decode: decodeEmbeddings, Fail: Fail}
)

func decodeEmbed(body []byte, about dialect.About) (dialect.Request, dialect.Encoder, error) {
	var in struct {
		Model      string          `json:"model"`
		Input      json.RawMessage `json:"input"` // a text or a list of texts
		Truncate   *bool           `json:"truncate"`
		Dimensions *int64          `json:"dimensions"`
		KeepAlive  json.RawMessage `json:"keep_alive"`
	}
	if err := dialect.Unmarshal(body, &in); err != nil {
		return dialect.Request{}, nil, err
	}
	return embedRequest(in.Model, in.KeepAlive, in.Input, in.Truncate == nil || *in.Truncate, in.Dimensions, &vectors{about: about, began: about.Now()})
}

func decodeEmbeddings(body []byte, about dialect.About) (dialect.Request, dialect.Encoder, error) {
	var in struct {
		Model  string          `json:"model"`
		Prompt json.RawMessage `json:"prompt"`

		KeepAlive json.RawMessage `json:"keep_alive"`
	}
	if err := dialect.Unmarshal(body, &in); err != nil {
		return dialect.Request{}, nil, err
	}
	return embedRequest(in.Model, in.KeepAlive, in.Prompt, true, nil, &vectors{about: about, began: about.Now(), one: true})
}

func embedRequest(model string, keepAlive, input json.RawMessage, truncate bool, dimensions *int64, enc *vectors) (dialect.Request, dialect.Encoder, error) {
	enc.model = model
	out := struct {
		Model      string          `json:"model"`
		Input      json.RawMessage `json:"input,omitempty"`
		Dimensions *int64          `json:"dimensions,omitempty"`
		Truncate   *int            `json:"truncate_prompt_tokens,omitempty"`
	}{Model: Name(model), Input: input, Dimensions: dimensions}
	if truncate {
		fitting := -1
		out.Truncate = &fitting
	}
	b, err := dialect.Marshal(out)
	if err != nil {
		return dialect.Request{}, nil, dialect.Invalid("input", "input is not valid JSON")
	}
	return dialect.Request{Path: dialect.PathEmbedding, Body: b, KeepAlive: keepAlive}, enc, nil
}

// vectors encodes the answer to a request for embeddings, which is never a stream.
type vectors struct {
	about dialect.About
	model string
	began time.Time
	one   bool // /api/embeddings
}

// ContentType implements dialect.Encoder.
func (*vectors) ContentType() string { return "application/x-ndjson" }

// Chunk implements dialect.Encoder.
func (*vectors) Chunk(dst []byte, _ dialect.Chunk) []byte { return dst }

// End implements dialect.Encoder.
func (*vectors) End(dst []byte) []byte { return append(dst, '\n') }

// Alive implements dialect.Encoder.
func (*vectors) Alive(dst []byte) []byte { return dst }

// Error implements dialect.Encoder.
func (v *vectors) Error(dst []byte, err *openai.Error) []byte {
	_, line := Fail(err, v.about)
	return append(dst, line...)
}

// Whole implements dialect.Encoder.
func (v *vectors) Whole(a dialect.Answer) ([]byte, error) {
	if v.one {
		out := struct {
			Embedding json.RawMessage `json:"embedding"`
		}{json.RawMessage("[]")}
		if len(a.Vectors) > 0 {
			out.Embedding = a.Vectors[0]
		}
		return dialect.Marshal(out)
	}
	out := struct {
		Model           string            `json:"model"`
		Embeddings      []json.RawMessage `json:"embeddings"`
		TotalDuration   int64             `json:"total_duration"` // ns
		LoadDuration    int64             `json:"load_duration"`  // ns
		PromptEvalCount int               `json:"prompt_eval_count"`
	}{Model: v.model, Embeddings: a.Vectors, TotalDuration: int64(v.about.Now().Sub(v.began))}
	if out.Embeddings == nil {
		out.Embeddings = []json.RawMessage{}
	}
	if a.Usage != nil {
		out.PromptEvalCount = a.Usage.PromptTokens
	}
	return dialect.Marshal(out)
}
