package llamacpp

import (
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"testing"

	"github.com/shoenig/test/must"
)

// hostileValues are the values that the test puts into the fields of a request.
var hostileValues = []any{
	nil, true, false, 0, 1, -1, 2, 3, 7, 64, 255, 1024, 1 << 20, 1<<31 - 1, 1 << 31, -1 << 31, 1 << 53, json.Number("9223372036854775807"), json.Number("-9223372036854775808"), json.Number("1e400"),
	0.5, 1e-320, 1e-6, 0.999999, 1.0000001, 1e38, 1e39, 1e308, -1e308, -0.5, 100, -100, 2047, 2048, "", "x", "<|im_end|>", "\x00", "\n", "NaN",
	[]any{},
	[]any{1},
	[]any{"x", ""},
	[]any{-1, 2048},
	[]any{[]any{1, 2}, []any{}},
	map[string]any{},
	map[string]any{"type": "json_object"},
	map[string]any{"1": 100, "2": -100},
	[][]any{{1, -100}, {2047, 1e30}},
	map[string]any{"include_usage": true},
	[]any{map[string]any{"id": 0, "scale": 1e38}},
	[]any{"top_k", "temperature", "min_p", "dry", "xtc", "top_k"},
	[]any{"dry", "penalties"},
}

// hostileFields are the fields of all requests that the engine answers.
var hostileFields = []string{
	"temperature", "top_p", "top_k", "min_p", "typical_p", "top_n_sigma", "min_keep", "dynatemp_range", "dynatemp_exponent", "xtc_probability", "xtc_threshold",
	"dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "repeat_penalty", "repetition_penalty", "repeat_last_n", "frequency_penalty", "presence_penalty",
	"samplers", "mirostat", "seed", "n", "best_of", "stop", "logit_bias", "logprobs", "top_logprobs", "echo", "suffix", "stream", "stream_options", "ignore_eos", "lora", "n_predict", "timings_per_token",
	"response_format", "json_schema", "grammar", "guided_regex", "guided_choice", "structured_outputs", "tools", "tool_choice", "dimensions", "encoding_format", "top_n", "add_special", "parse_special", "with_pieces", "cache_prompt", "return_tokens",
}

// hostilePaths are the paths, each with the field that holds its text.
var hostilePaths = [][2]string{
	{"/v1/chat/completions", "messages"},
	{"/v1/chat/completions", "messages"},
	{"/v1/completions", "prompt"},
	{"/v1/completions", "prompt"},
	{"/completion", "prompt"},
	{"/v1/embeddings", "input"},
	{"/v1/rerank", "query"},
	{"/tokenize", "content"},
	{"/detokenize", "tokens"},
	{"/apply-template", "messages"},
	{"/infill", "input_prefix"},
}

// FuzzRequests sends requests with hostile field values to the real engine: each must be answered
// or refused with an API error, and the worker must survive. The engine aborts the process on input
// that it does not expect.
func FuzzRequests(f *testing.F) {
	f.Add(uint64(1), "Hello")
	f.Add(uint64(2), "<|im_start|>user\n\x00\xff")
	f.Add(uint64(3), "")
	w := startWorker(f, 2, 256, `{"pooling":"mean"}`)
	f.Fuzz(func(t *testing.T, seed uint64, text string) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		path := hostilePaths[rnd.IntN(len(hostilePaths))]
		body := map[string]any{"model": "rbee-tiny"}
		for range rnd.IntN(8) {
			body[hostileFields[rnd.IntN(len(hostileFields))]] = hostileValues[rnd.IntN(len(hostileValues))]
		}
		body["max_tokens"] = 1 + rnd.IntN(6)
		switch {
		case rnd.IntN(8) == 0:
			body[path[1]] = hostileValues[rnd.IntN(len(hostileValues))]
		case path[1] == "messages":
			body["messages"] = []any{map[string]any{"role": "user", "content": text}}
		case path[1] == "tokens":
			tokens := []any{}
			for range rnd.IntN(9) {
				tokens = append(tokens, rnd.IntN(2100)-10)
			}
			body["tokens"] = tokens
		default:
			body[path[1]] = text
		}
		if path[1] == "query" {
			body["documents"] = []any{text, "x"}
		}
		delete(body, "n_predict") // it would outlast the test's patience
		b, err := json.Marshal(body)
		must.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		resp := w.post(ctx, t, path[0], string(b))
		answer, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
		must.NoError(t, resp.Body.Close())
		must.NoError(t, err, must.Sprintf("%s", b))
		must.Less(t, http.StatusInternalServerError, resp.StatusCode, must.Sprintf("%s: %s", b, answer))
		if resp.Header.Get("Content-Type") == "application/json" {
			must.True(t, json.Valid(answer), must.Sprintf("%s: %s", b, answer))
		}
	})
}
