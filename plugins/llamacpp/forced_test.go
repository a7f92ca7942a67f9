package llamacpp

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/rbee-project/rbee/plugins/grammar"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/constraint"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// longKeys is a schema whose documents consist mostly of property names.
const longKeys = `{"type":"object","properties":{"number_of_worker_bees":{"type":"integer","minimum":0,"maximum":99},"number_of_drones":{"type":"integer","minimum":0,"maximum":9},
	"is_the_queen_well_and_laying_eggs":{"type":"boolean"},"colour_of_the_hive":{"enum":["yellow","white","the colour of honey"]},"place_where_the_hive_stands":{"type":"object","properties":
	{"latitude_in_degrees":{"type":"integer","minimum":-90,"maximum":90},"longitude_in_degrees":{"type":"integer","minimum":-180,"maximum":180}},"required":["latitude_in_degrees","longitude_in_degrees"],"additionalProperties":false}},
	"required":["number_of_worker_bees","number_of_drones","is_the_queen_well_and_laying_eggs","colour_of_the_hive","place_where_the_hive_stands"],"additionalProperties":false}`

// Text without an alternative is written with the tokens that the tokenizer would use, whatever
// follows, and its tokens are counted and shown like others.
func TestForcedTokens(t *testing.T) {
	w := startWorker(t, 2, 1024, "")
	m := w.served.model
	for i, text := range []string{`{"number_of_bees":"12","list of \"names\"":["Maja","東京",true,null]}`, `"` + strings.Repeat("bees and hives ", 12) + `."`} {
		form := schemaForm(`{"const":` + text + `}`)
		c := w.chat(t, structured(form, i, `,"max_tokens":200,"logprobs":true,"top_logprobs":2`))
		must.Eq(t, text, *c.Choices[0].Message.Content)
		want := m.tokens(text, false, false)
		must.Eq(t, len(want)+1, c.Usage.CompletionTokens) // plus the end token
		for k, x := range c.Choices[0].LogProbs.Content {
			must.Eq(t, []byte(m.pieces[want[k]]), bytesOf(x.Bytes))
			must.SliceLen(t, 2, x.TopLogProbs)
		}
		plain := w.chat(t, structured(form, i, `,"max_tokens":200`))
		must.Eq(t, c.Usage.CompletionTokens, plain.Usage.CompletionTokens)
		must.Eq(t, text, *plain.Choices[0].Message.Content)
		s := w.stream(t.Context(), t, structured(form, i, `,"max_tokens":200,"stream":true`), nil)
		must.Eq(t, text, s.text)

		cut := w.chat(t, structured(form, i, `,"max_tokens":5`))
		must.Eq(t, 5, cut.Usage.CompletionTokens)
		must.Eq(t, openai.FinishLength, cut.Choices[0].FinishReason)
		must.StrHasPrefix(t, *cut.Choices[0].Message.Content, text)
		cut = w.chat(t, structured(form, i, `,"stop":"s"`))
		must.Eq(t, text[:strings.Index(text, "s")], *cut.Choices[0].Message.Content)
		must.Eq(t, openai.FinishStop, cut.Choices[0].FinishReason)
	}

	// The log probabilities equal those of a model that reads the tokens one by one.
	body := structured(schemaForm(longKeys), 4, `,"max_tokens":200,"logprobs":true`)
	ahead := w.chat(t, body).Choices[0]
	shown := ""
	for _, x := range ahead.LogProbs.Content {
		shown += x.Token
	}
	must.Eq(t, *ahead.Message.Content, shown)
	plain := w.chat(t, structured(schemaForm(longKeys), 4, `,"max_tokens":200`)).Choices[0]
	must.Eq(t, *plain.Message.Content, *ahead.Message.Content)

	// The same for tool calls.
	tools := `,"tools":[{"type":"function","function":{"name":"report_the_state_of_a_hive","strict":true,"parameters":` + longKeys + `}}],"tool_choice":"required","max_tokens":300,"temperature":1,"seed":`
	for seed := range 3 {
		c := w.chat(t, question("Report.", tools+fmt.Sprint(seed))).Choices[0]
		must.Eq(t, openai.FinishToolCalls, c.FinishReason)
		v, err := validator([]byte(longKeys))
		must.NoError(t, err)
		must.NoError(t, validate(v, c.Message.ToolCalls[0].Function.Arguments))
	}
}

// For any document, tokens forced on the way are the document's own tokens.
func TestForcedAsTokenized(t *testing.T) {
	w := startWorker(t, 2, 512, "")
	m, e := w.served.model, w.served.engine
	forced, all := 0, 0
	for i, schema := range append(slices.Clone(schemas), longKeys) {
		g, err := grammar.Compile([]byte(schema), grammar.Options{})
		must.NoError(t, err)
		for seed := range 3 {
			c := w.chat(t, structured(schemaForm(schema), seed, `,"max_tokens":300`)).Choices[0]
			if c.FinishReason != openai.FinishStop {
				continue
			}
			var tokens []int
			for _, x := range m.tokens(*c.Message.Content, false, false) {
				tokens = append(tokens, int(x))
			}
			k := constraint.New(g, m.vocabulary, constraint.Thinking{})
			for at := 0; at < len(tokens); at++ {
				list := k.Forced(tokens[:at], e.speller(false))
				must.True(t, len(list) <= len(tokens)-at && slices.Equal(list, tokens[at:at+len(list)]), must.Sprintf("schema %d: %v of %v at %d", i, list, tokens, at))
				forced += len(list)
				for _, x := range append(slices.Clone(list), tokens[at+len(list):min(at+len(list)+1, len(tokens))]...) {
					must.NoError(t, k.Accept(x))
				}
				at += len(list)
			}
			all += len(tokens)
		}
	}
	t.Logf("%d of %d tokens are forced", forced, all)
	must.Greater(t, all/5, forced)
}

// TestForcedSpeed prints the time of answers under a schema with long names, alternating with and
// without forced tokens evaluated in one step: RBEE_TEST_ROUNDS answers each, of RBEE_TEST_MODEL.
func TestForcedSpeed(t *testing.T) {
	rounds, err := strconv.Atoi(os.Getenv("RBEE_TEST_ROUNDS"))
	if err != nil {
		t.Skip("RBEE_TEST_ROUNDS is not set")
	}
	path := os.Getenv("RBEE_TEST_MODEL")
	if path == "" {
		path = tinyModel(t)
	}
	w := startWorkerOf(t, path, 1, 1024, "")
	spent, made := map[bool]time.Duration{}, map[bool]int{}
	computed := map[bool]time.Duration{}
	for round := range rounds {
		for _, sampled := range []bool{round%2 == 0, round%2 == 1} {
			w.served.engine.samplesAll = sampled
			began, cpu := time.Now(), computing(t)
			out := w.complete(t, fmt.Sprintf(`{"prompt":"Hives.","max_tokens":300,"temperature":1,"seed":%d,%s}`, round, schemaForm(longKeys)))
			if round > 0 {
				spent[sampled] += time.Since(began)
				computed[sampled] += computing(t) - cpu
				made[sampled] += out.Usage.CompletionTokens
			}
		}
	}
	for _, sampled := range []bool{true, false} {
		n := time.Duration(made[sampled])
		t.Logf("all sampled %v: %d tokens, a token %v, of a processor %v; an answer %v", sampled, n, spent[sampled]/n, computed[sampled]/n, spent[sampled]/time.Duration(rounds-1))
	}
}

// computing returns the CPU time that the process has used.
func computing(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	must.NoError(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func bytesOf(list []int) []byte {
	var out []byte
	for _, b := range list {
		out = append(out, byte(b))
	}
	return out
}
