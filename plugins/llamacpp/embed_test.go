package llamacpp

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// embed sends a request for embeddings that must succeed.
func (w *testWorker) embed(t testing.TB, body string) ([]json.RawMessage, openai.EmbeddingUsage) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp := w.post(ctx, t, "/v1/embeddings", body)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	must.Eq(t, http.StatusOK, resp.StatusCode, must.Sprintf("%s", b))
	var out struct {
		Data []struct {
			Index     int
			Embedding json.RawMessage
		}
		Usage openai.EmbeddingUsage
	}
	must.NoError(t, json.Unmarshal(b, &out))
	list := []json.RawMessage{}
	for i, d := range out.Data {
		must.Eq(t, i, d.Index)
		list = append(list, d.Embedding)
	}
	return list, out.Usage
}

func floats(t testing.TB, raw json.RawMessage) []float32 {
	t.Helper()
	var v []float32
	must.NoError(t, json.Unmarshal(raw, &v))
	return v
}

// cosine returns the cosine similarity of two vectors of length one.
func cosine(a, b []float32) float64 {
	sum := 0.0
	for i := range a {
		sum += float64(a[i]) * float64(b[i])
	}
	return sum
}

// Between the steps of a long list another request may take the turn, but not the place.
func TestEmbedderKeepsPlace(t *testing.T) {
	t.Parallel()
	e := &embedder{places: 2, turn: make(chan struct{}, 1)}
	must.Nil(t, e.enter())
	for range 3 {
		must.Nil(t, e.begin(t.Context()))
		e.end()
	}
	must.Nil(t, e.enter())
	must.NotNil(t, e.enter())
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	must.Nil(t, e.begin(t.Context()))
	must.NotNil(t, e.begin(gone)) // another request holds the turn
	e.end()
	must.NotNil(t, e.enter()) // both keep their places
	e.leave()
	must.Nil(t, e.enter())
}

func TestEmbeddings(t *testing.T) {
	w := startWorker(t, 2, 256, `{"pooling":"mean"}`)
	st, err := w.Status(t.Context())
	must.NoError(t, err)
	must.SliceContains(t, st.Capabilities, worker.CapabilityEmbeddings)

	texts := []string{"Hello, how are you?", "The cat sat on the mat.", "x"}
	for i := range 40 { // more than fit into one step
		texts = append(texts, fmt.Sprintf("Sentence number %d is about the sea.", i))
	}
	body, err := json.Marshal(map[string]any{"model": "rbee-tiny", "input": texts})
	must.NoError(t, err)
	together, usage := w.embed(t, string(body))
	must.Len(t, len(texts), together)
	must.Eq(t, usage.PromptTokens, usage.TotalTokens)
	must.Greater(t, len(texts), usage.PromptTokens)
	for i, text := range texts {
		v := floats(t, together[i])
		must.InDelta(t, 1, cosine(v, v), 1e-4)
		if i%7 == 0 { // the same in a batch as alone
			one, err := json.Marshal(map[string]any{"model": "rbee-tiny", "input": text})
			must.NoError(t, err)
			alone, _ := w.embed(t, string(one))
			must.InDelta(t, 1, cosine(v, floats(t, alone[0])), 1e-3, must.Sprint(text))
		}
	}
	must.Less(t, 0.999, cosine(floats(t, together[0]), floats(t, together[1])))

	plain, _ := w.embed(t, `{"model":"rbee-tiny","input":"Hello"}`)
	coded, _ := w.embed(t, `{"model":"rbee-tiny","input":"Hello","encoding_format":"base64"}`)
	var text string
	must.NoError(t, json.Unmarshal(coded[0], &text))
	raw, err := base64.StdEncoding.DecodeString(text)
	must.NoError(t, err)
	want := floats(t, plain[0])
	must.Eq(t, 4*len(want), len(raw))
	for i := range want {
		must.InDelta(t, float64(want[i]), float64(math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))), 1e-6)
	}
	short, _ := w.embed(t, `{"model":"rbee-tiny","input":"Hello","dimensions":8}`)
	v := floats(t, short[0])
	must.Len(t, 8, v)
	must.InDelta(t, 1, cosine(v, v), 1e-4)
	must.InDelta(t, float64(want[0]/want[1]), float64(v[0]/v[1]), 1e-3)
}

// Embeddings and answers run at once without disturbing each other.
func TestEmbeddingsBesideAnswers(t *testing.T) {
	w := startWorker(t, 2, 256, `{"pooling":"mean"}`)
	const ask = `{"model":"rbee-tiny","temperature":0,"max_tokens":40,"messages":[{"role":"user","content":"Tell me a story."}]}`
	alone := w.chat(t, ask).Choices[0].Message.Content
	vector, _ := w.embed(t, `{"model":"rbee-tiny","input":"the sea"}`)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				got, _ := w.embed(t, `{"model":"rbee-tiny","input":"the sea"}`)
				must.Eq(t, string(vector[0]), string(got[0]))
			}
		})
	}
	for range 3 {
		must.Eq(t, *alone, *w.chat(t, ask).Choices[0].Message.Content)
	}
	wg.Wait()
}

func TestEmbeddingsRefuse(t *testing.T) {
	w := startWorker(t, 1, 64, `{"pooling":"mean"}`)
	long := strings.Repeat("word ", 100)
	for body, want := range map[string]string{
		`{"model":"m"}`:                                            "input is missing",
		`{"model":"m","input":[]}`:                                 "input is missing",
		`{"model":"m","input":["a",""]}`:                           "input[1] is empty",
		`{"model":"m","input":["a","` + long + `"]}`:               "input[1] has",
		`{"model":"m","input":[[1,2],[99999999]]}`:                 "input[1] has the token",
		`{"model":"m","input":"a","dimensions":100000}`:            "dimensions is 100000",
		`{"model":"m","input":"a","dimensions":0}`:                 "dimensions must be 1 or more",
		`{"model":"m","input":"a","encoding_format":"b"}`:          "encoding_format must be",
		`{"model":"m","input":{"a":1}}`:                            "input",
		`{"model":"m","input":"` + strings.Repeat(long, 50) + `"}`: "input[0] has",
	} {
		status, e, _ := w.refused(t, "/v1/embeddings", body)
		must.Eq(t, http.StatusBadRequest, status)
		must.StrContains(t, e.Message, want)
	}
	cut, usage := w.embed(t, `{"model":"m","input":"`+long+`","truncate_prompt_tokens":-1}`)
	must.Len(t, 1, cut)
	must.Eq(t, 64, usage.PromptTokens)
	_, usage = w.embed(t, `{"model":"m","input":"`+strings.Repeat(long, 50)+`","truncate_prompt_tokens":7}`)
	must.Eq(t, 7, usage.PromptTokens)

	plain := startWorker(t, 1, 64, "")
	st, err := plain.Status(t.Context())
	must.NoError(t, err)
	must.False(t, slices.Contains(st.Capabilities, worker.CapabilityEmbeddings))
	_, e, _ := plain.refused(t, "/v1/embeddings", `{"model":"m","input":"a"}`)
	must.StrContains(t, e.Message, "set pooling")
}
