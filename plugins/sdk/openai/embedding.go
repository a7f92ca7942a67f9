package openai

// ObjectEmbedding is the object of an Embedding.
const ObjectEmbedding = "embedding"

// MaxInputs is how many texts an EmbeddingRequest may have: OpenAI's limit.
const MaxInputs = 2048

// EmbeddingRequest is the body of POST /v1/embeddings.
type EmbeddingRequest struct {
	Model          string `json:"model"`
	Input          Prompt `json:"input"`
	EncodingFormat string `json:"encoding_format,omitempty"` // "float" (default) or "base64"
	Dimensions     *Int   `json:"dimensions,omitempty"`      // 1 or more; nil: all
	User           string `json:"user,omitempty"`
	// TruncatePromptTokens cuts texts that have more tokens; -1 cuts those that do not fit; nil:
	// they are rejected. It is not OpenAI's.
	TruncatePromptTokens *Int `json:"truncate_prompt_tokens,omitempty"`
}

// DecodeEmbedding reads and validates the body of POST /v1/embeddings. Errors: *Error.
func DecodeEmbedding(body []byte) (*EmbeddingRequest, error) {
	var r EmbeddingRequest
	if err := decode(body, &r); err != nil {
		return nil, err
	}
	if err := r.Validate(); err != nil {
		return nil, err
	}
	return &r, nil
}

// Validate checks the request's values.
func (r *EmbeddingRequest) Validate() error {
	n := len(r.Input.Texts) + len(r.Input.Tokens)
	switch {
	case r.Model == "":
		return Invalid("model", "model is missing")
	case n == 0:
		return Invalid("input", "input is missing: send a text or a list of texts")
	case n > MaxInputs:
		return Invalid("input", "input has %d texts; at most %d are taken", n, MaxInputs)
	case r.EncodingFormat != "" && r.EncodingFormat != "float" && r.EncodingFormat != "base64":
		return Invalid("encoding_format", "encoding_format must be float or base64")
	case r.Dimensions != nil && *r.Dimensions < 1:
		return Invalid("dimensions", "dimensions must be 1 or more")
	}
	return checkTruncate(r.TruncatePromptTokens)
}

// EmbeddingResponse is the response of POST /v1/embeddings.
type EmbeddingResponse struct {
	Object string          `json:"object"` // ObjectList
	Data   []Embedding     `json:"data"`
	Model  string          `json:"model"`
	Usage  *EmbeddingUsage `json:"usage,omitempty"`
}

// Embedding is the vector of one input.
type Embedding struct {
	Object    string `json:"object"` // ObjectEmbedding
	Index     int    `json:"index"`
	Embedding any    `json:"embedding"` // []float32, or its base64, little-endian
}

// EmbeddingUsage counts the tokens of an EmbeddingRequest.
type EmbeddingUsage struct {
	PromptTokens int `json:"prompt_tokens"`
	TotalTokens  int `json:"total_tokens"`
}
