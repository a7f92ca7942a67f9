package llamacpp

import (
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hybridgroup/yzma/pkg/llama"
	"github.com/shoenig/test/must"
)

var update = flag.Bool("update", false, "record testdata/expected.json anew, with the engine's plain loop")

// recorded is what llama.cpp itself says to a prompt.
type recorded struct {
	Question string        `json:"question"`
	Prompt   string        `json:"prompt"` // as the chat template makes it
	Tokens   []llama.Token `json:"tokens"` // of the prompt
	Text     string        `json:"text"`   // of the answer
	Answer   []llama.Token `json:"answer"` // the last one ends it, unless the answer was cut
}

const (
	recordFile = "testdata/expected.json"
	recordMax  = 200 // tokens of an answer
)

// recordQuestions are asked one after the other, each alone.
func recordQuestions() []string {
	return []string{
		"What is a queen?", "What does the queen do?", "What happens when I drain a hive?", "What is 7 + 5?",
		"What is the capital of Japan?", "Give me JSON with the name Vince and the age 42.",
		"Tell me a short story about a bee named Pip.", "who are you", "Is 12 bigger than 7?", "Zum Glück ist heute 東京 dran 🐝",
	}
}

func loadRecorded(t testing.TB) []recorded {
	t.Helper()
	b, err := os.ReadFile(recordFile)
	must.NoError(t, err)
	var out []recorded
	must.NoError(t, json.Unmarshal(b, &out))
	return out
}

// TestRecord makes testdata/expected.json, with -update. It uses the binding directly and nothing of this package but the loading of the libraries:
// the prompt is written out by hand, and the loop is llama.cpp's own simplest one.
func TestRecord(t *testing.T) {
	if !*update {
		t.Skip("records only with -update")
	}
	must.NoError(t, theLibrary.load(engineDir(t), hclog.NewNullLogger()))
	model, err := llama.ModelLoadFromFile(tinyModel(t), llama.ModelDefaultParams())
	must.NoError(t, err)
	defer func() { must.NoError(t, llama.ModelFree(model)) }()
	var out []recorded
	for _, q := range recordQuestions() {
		r := recorded{Question: q, Prompt: "<|im_start|>user\n" + q + "<|im_end|>\n<|im_start|>assistant\n"}
		r.Tokens, r.Answer, r.Text = greedy(t, model, r.Prompt)
		out = append(out, r)
		t.Logf("%s → %s", q, r.Text)
	}
	b, err := json.MarshalIndent(out, "", " ")
	must.NoError(t, err)
	must.NoError(t, os.MkdirAll("testdata", 0o755))
	must.NoError(t, os.WriteFile(recordFile, append(b, '\n'), 0o644))
}

// greedy is the plain loop: tokenise, decode, take the largest.
func greedy(t *testing.T, model llama.Model, prompt string) (tokens, answer []llama.Token, text string) {
	params := llama.ContextDefaultParams()
	params.NCtx, params.NThreads, params.NThreadsBatch = 1024, 1, 1
	ctx, err := llama.InitFromModel(model, params)
	must.NoError(t, err)
	defer func() { must.NoError(t, llama.Free(ctx)) }()
	vocab := llama.ModelGetVocab(model)
	tokens = llama.Tokenize(vocab, prompt, true, true)
	next := tokens
	var b strings.Builder
	for len(answer) < recordMax {
		code, err := llama.Decode(ctx, llama.BatchGetOne(next))
		must.NoError(t, err)
		must.Eq(t, int32(0), code)
		logits, err := llama.GetLogitsIth(ctx, -1, int(llama.VocabNTokens(vocab)))
		must.NoError(t, err)
		best := 0
		for i, l := range logits {
			if l > logits[best] {
				best = i
			}
		}
		answer = append(answer, llama.Token(best))
		if llama.VocabIsEOG(vocab, llama.Token(best)) {
			break
		}
		buf := make([]byte, 256)
		b.Write(buf[:llama.TokenToPiece(vocab, llama.Token(best), buf, 0, false)])
		next = []llama.Token{llama.Token(best)}
	}
	return tokens, answer, b.String()
}
