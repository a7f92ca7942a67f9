package openai

import (
	"encoding/json"
)

// MaxDocuments is how many documents a RerankRequest may have.
const MaxDocuments = 2048

// RerankRequest is the body of POST /v1/rerank. It follows Jina's and Cohere's API, as OpenAI has
// no such route.
type RerankRequest struct {
	Model     string     `json:"model"`
	Query     string     `json:"query"`
	Documents []Document `json:"documents"`
	TopN      *Int       `json:"top_n,omitempty"` // return only the best n results; nil: all
	// ReturnDocuments includes the documents in the results. nil: no, as with Cohere and llama.cpp.
	ReturnDocuments *bool `json:"return_documents,omitempty"`
	// TruncatePromptTokens cuts texts that have more tokens; -1 cuts those that do not fit; nil:
	// they are rejected. It is vLLM's.
	TruncatePromptTokens *Int `json:"truncate_prompt_tokens,omitempty"`
	// Texts is what text-embeddings-inference calls Documents.
	Texts []Document `json:"texts,omitempty"`
}

// Document is one text of a RerankRequest. On the wire it is a string or an object with a text.
type Document struct {
	Text string `json:"text"`
}

// UnmarshalJSON reads a string, or an object with a text.
func (d *Document) UnmarshalJSON(b []byte) error {
	*d = Document{}
	switch b[0] {
	case '"':
		return json.Unmarshal(b, &d.Text)
	case '{':
		var v struct {
			Text json.RawMessage `json:"text"`
		}
		if err := json.Unmarshal(b, &v); err != nil {
			return err
		}
		if isNull(v.Text) || v.Text[0] != '"' {
			return typeError[Document]("object without a text")
		}
		return json.Unmarshal(v.Text, &d.Text)
	}
	return typeError[Document](jsonKind(b))
}

// DecodeRerank reads and validates the body of POST /v1/rerank. Errors: *Error.
func DecodeRerank(body []byte) (*RerankRequest, error) {
	var r RerankRequest
	if err := decode(body, &r); err != nil {
		return nil, err
	}
	if r.Documents == nil {
		r.Documents, r.Texts = r.Texts, nil
	}
	switch {
	case r.Query == "":
		return nil, Invalid("query", "query is missing")
	case len(r.Documents) == 0:
		return nil, Invalid("documents", "documents is missing: send a list of texts")
	case len(r.Documents) > MaxDocuments:
		return nil, Invalid("documents", "documents has %d texts; at most %d are taken", len(r.Documents), MaxDocuments)
	case r.TopN != nil && *r.TopN < 1:
		return nil, Invalid("top_n", "top_n must be 1 or more")
	}
	if err := checkTruncate(r.TruncatePromptTokens); err != nil {
		return nil, err
	}
	return &r, nil
}

func checkTruncate(n *Int) error {
	if n != nil && *n < 1 && *n != -1 {
		return Invalid("truncate_prompt_tokens", "truncate_prompt_tokens must be -1, or 1 or more")
	}
	return nil
}

// RerankResponse is the response of POST /v1/rerank, the most relevant document first.
type RerankResponse struct {
	Object  string          `json:"object"` // ObjectList
	Model   string          `json:"model"`
	Results []RerankResult  `json:"results"`
	Usage   *EmbeddingUsage `json:"usage,omitempty"`
}

// RerankResult is the relevance of one document to the query: higher is more relevant. Beyond the
// order, the meaning of the numbers depends on the model.
type RerankResult struct {
	Index          int       `json:"index"` // the document's index in the request
	RelevanceScore float64   `json:"relevance_score"`
	Document       *Document `json:"document,omitempty"`
}
