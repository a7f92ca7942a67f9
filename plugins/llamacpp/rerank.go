package llamacpp

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/plugins/jinja"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// rerank answers POST /v1/rerank.
func (s *server) rerank(ctx context.Context, body []byte) (any, error) {
	req, err := openai.DecodeRerank(body)
	if err != nil {
		return nil, err
	}
	e := s.embedder
	if e == nil || !e.ranks() {
		return nil, openai.NotSupported("model", "this model does not score texts; serve one that is made for reranking")
	}
	texts, err := s.pairs(ctx, req)
	if err != nil {
		return nil, err
	}
	scores, failed := e.embed(ctx, texts)
	if failed != nil {
		return nil, failed
	}
	out := &openai.RerankResponse{Object: openai.ObjectList, Model: s.modelID, Usage: &openai.EmbeddingUsage{}}
	for i, v := range scores {
		r := openai.RerankResult{Index: i, RelevanceScore: float64(v[0])}
		if req.ReturnDocuments != nil && *req.ReturnDocuments {
			r.Document = &req.Documents[i]
		}
		out.Results = append(out.Results, r)
		out.Usage.PromptTokens += len(texts[i])
	}
	out.Usage.TotalTokens = out.Usage.PromptTokens
	slices.SortStableFunc(out.Results, func(a, b openai.RerankResult) int { return cmp.Compare(b.RelevanceScore, a.RelevanceScore) })
	if req.TopN != nil && int(*req.TopN) < len(out.Results) {
		out.Results = out.Results[:*req.TopN]
	}
	return out, nil
}

// pairs returns the query joined with each document, as the model reads them.
func (s *server) pairs(ctx context.Context, req *openai.RerankRequest) ([][]token, error) {
	limit := s.embedder.limit
	cut := req.TruncatePromptTokens != nil
	if cut && *req.TruncatePromptTokens > 0 {
		limit = min(limit, int(*req.TruncatePromptTokens))
	}
	long := func(where string, n int) error {
		return openai.NewError(http.StatusBadRequest, openai.TypeContextExceeded, "documents", openai.CodeContextLength, "%s has %d tokens with the query, and this worker reads at most %d of both; shorten it or split it", where, n, limit)
	}
	most := limit * max(1, s.model.maxPiece) * 4 // longer texts cannot fit, whatever their tokens
	if len(req.Query) > most {
		return nil, openai.NewError(http.StatusBadRequest, openai.TypeContextExceeded, "query", openai.CodeContextLength, "query has %d bytes, and this worker reads at most %d tokens of query and document; shorten it", len(req.Query), limit)
	}
	join, err := s.model.joiner(req.Query)
	if err != nil {
		return nil, err
	}
	var out [][]token
	for i, d := range req.Documents {
		where := fmt.Sprintf("documents[%d]", i)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if len(d.Text) > most {
			if !cut {
				return nil, openai.NewError(http.StatusBadRequest, openai.TypeContextExceeded, "documents", openai.CodeContextLength, "%s has %d bytes, and this worker reads at most %d tokens of query and document; shorten it or split it", where, len(d.Text), limit)
			}
			d.Text = strings.ToValidUTF8(d.Text[:most], "")
		}
		tokens, err := join(ctx, d.Text)
		switch {
		case err != nil:
			return nil, err
		case len(tokens) == 0:
			return nil, openai.Invalid("documents", "%s and the query are empty", where)
		case len(tokens) > limit && !cut:
			return nil, long(where, len(tokens))
		}
		out = append(out, s.model.cut(tokens, limit))
	}
	return out, nil
}

// joiner returns a function that joins the query and a document: with the model's own template, or
// as BERT and RoBERTa models read two texts, with a token at the beginning, one or two between them
// and one at the end.
func (m *model) joiner(query string) (func(ctx context.Context, document string) ([]token, error), error) {
	if source := m.native.RankTemplate(); source != "" {
		t, values, err := rankTemplate(source)
		if err != nil {
			return nil, err
		}
		values["query"] = clientText(query)
		return func(ctx context.Context, document string) ([]token, error) {
			values["document"] = clientText(document)
			text, err := t.Render(ctx, values, jinja.Limits{Now: time.Time{}})
			if err != nil {
				return nil, openai.Invalid("documents", "cannot join query and document: %v", err)
			}
			return m.chatTokens(text), nil
		}, nil
	}
	var between, end []token
	if m.native.AddsEOS() {
		between, end = append(between, m.native.EOS()), append(end, m.native.EOS())
	}
	if m.native.AddsSEP() {
		between = append(between, m.native.SEP())
		if len(end) == 0 { // in BERT, the end token is the separator
			end = append(end, m.native.SEP())
		}
	}
	var begin []token
	if m.addBOS && m.bos >= 0 {
		begin = append(begin, m.bos)
	}
	begin = slices.Concat(begin, m.tokens(query, false, false), between)
	return func(_ context.Context, document string) ([]token, error) {
		return slices.Concat(begin, m.tokens(document, false, false), end), nil
	}, nil
}

// rankTemplate converts a text with {query} and {document} to a template, so that it is known which
// bytes of the result a client wrote.
func rankTemplate(source string) (*jinja.Template, map[string]any, error) {
	values := map[string]any{}
	var out strings.Builder
	for n := 0; source != ""; n++ {
		at, name := -1, ""
		for _, x := range []string{"query", "document"} {
			if i := strings.Index(source, "{"+x+"}"); i >= 0 && (at < 0 || i < at) {
				at, name = i, x
			}
		}
		if at < 0 {
			at = len(source)
		}
		part := fmt.Sprintf("part_%d", n)
		values[part] = jinja.TemplateText(source[:at])
		out.WriteString("{{ " + part + " }}")
		if name == "" {
			break
		}
		out.WriteString("{{ " + name + " }}")
		source = source[at+len(name)+2:]
	}
	t, err := jinja.Compile(out.String())
	return t, values, err
}
