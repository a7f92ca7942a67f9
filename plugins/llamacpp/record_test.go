package llamacpp

import (
	"encoding/json"
	"flag"
	"os"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/native"
	"github.com/rbee-project/rbee/plugins/llamacpp/llamatest"
)

var update = flag.Bool("update", false, "record testdata/prompts.json anew")

// recorded is a question with the prompt that the chat template and the tokenizer make of it.
// Neither depends on the CPU.
type recorded struct {
	Question string  `json:"question"`
	Prompt   string  `json:"prompt"`
	Tokens   []token `json:"tokens"`
}

const (
	recordFile = "testdata/prompts.json"
	recordMax  = 200 // tokens of an answer

	queenAnswer = "The queen coordinates everything: she knows the hives, schedules the work, and answers the API."
	sumAnswer   = "7 + 5 = 12."
)

// recordQuestions returns the questions, to be asked one after the other, each alone.
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

// TestRecord writes testdata/prompts.json, with -update. The prompts are written by hand; only
// their tokens come from the engine.
func TestRecord(t *testing.T) {
	if !*update {
		t.Skip("records only with -update")
	}
	loop := plainLoop(t)
	var out []recorded
	for _, q := range recordQuestions() {
		r := recorded{Question: q, Prompt: "<|im_start|>user\n" + q + "<|im_end|>\n<|im_start|>assistant\n"}
		r.Tokens = loop.Tokens(r.Prompt)
		out = append(out, r)
	}
	b, err := json.MarshalIndent(out, "", " ")
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(recordFile, append(b, '\n'), 0o644))
}

// plainLoop returns llama.cpp's own loop over the tiny model, the reference for the worker's
// answers on this machine.
func plainLoop(t testing.TB) *llamatest.Loop {
	t.Helper()
	must.NoError(t, native.Load(engineDir(t), hclog.NewNullLogger()))
	return llamatest.New(t, tinyModel(t))
}

// Tests may compare with a literal text instead of the loop only if no token of the text is nearly
// tied on any machine.
func TestLiteralAnswersAreSure(t *testing.T) {
	loop := plainLoop(t)
	for question, want := range map[string]string{
		"What is a queen?": queenAnswer,
		"What is 7 + 5?":   sumAnswer,
	} {
		a := loop.Answer(t, loop.Tokens("<|im_start|>user\n"+question+"<|im_end|>\n<|im_start|>assistant\n"), recordMax)
		must.Eq(t, want, a.Text)
		must.Greater(t, 2*llamatest.Margin, a.Gap)
	}
}
