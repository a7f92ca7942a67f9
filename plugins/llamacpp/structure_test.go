package llamacpp

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/grammar"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/sampler"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// validator compiles a schema with an independent validator.
func validator(schema []byte) (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	if err := c.AddResource("mem://schema.json", doc); err != nil {
		return nil, err
	}
	return c.Compile("mem://schema.json")
}

func validate(v *jsonschema.Schema, text string) error {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return err
	}
	return v.Validate(doc)
}

// structured returns the body of a chat request for an answer with a form, at temperature 1.
func structured(form string, seed int, more string) string {
	return fmt.Sprintf(`{"messages":[{"role":"user","content":"Tell me about bees as JSON."}],"temperature":1,"top_k":0,"min_p":0,"seed":%d,%s%s}`, seed, form, more)
}

func schemaForm(schema string) string {
	return `"response_format":{"type":"json_schema","json_schema":{"name":"x","strict":true,"schema":` + schema + `}}`
}

// schemas are shortened from what clients use.
var schemas = []string{
	`{"type":"object","properties":{"name":{"type":"string","maxLength":12},"age":{"type":"integer","minimum":0,"maximum":150}},"required":["name","age"],"additionalProperties":false}`,
	`{"type":"object","properties":{"kind":{"enum":["queen","worker","drone"]},"size":{"type":"number","exclusiveMinimum":0,"maximum":3}},"required":["kind","size"],"additionalProperties":false}`,
	`{"type":"array","items":{"type":"boolean"},"minItems":2,"maxItems":4}`,
	`{"type":"string","pattern":"^[a-f]{3}-[0-9]{2}$"}`,
	`{"type":"string","format":"date"}`,
	`{"oneOf":[{"type":"integer","multipleOf":3,"minimum":3,"maximum":99},{"const":"none"},{"type":"null"}]}`,
	`{"$defs":{"t":{"type":"object","properties":{"v":{"type":"integer","minimum":0,"maximum":9},"l":{"anyOf":[{"$ref":"#/$defs/t"},{"type":"null"}]}},"required":["v","l"],"additionalProperties":false}},"$ref":"#/$defs/t"}`,
	`{"type":"object","patternProperties":{"^x[0-9]$":{"type":"boolean"}},"additionalProperties":false,"minProperties":1,"maxProperties":2}`,
	`{"type":"array","prefixItems":[{"const":"東京"},{"type":"string","minLength":2,"maxLength":5}],"items":false,"minItems":2}`,
	`{"type":"object","properties":{"a":{"type":"string","maxLength":5},"b":{"type":"string","maxLength":5}},"additionalProperties":false,"anyOf":[{"required":["a"]},{"required":["b"]}]}`,
	`{"type":"array","items":{"type":"string","pattern":"^[a-z]{2}$"},"uniqueItems":true,"minItems":3,"maxItems":5}`,
	`{"type":"object","properties":{"on":{"type":"boolean"},"at":{"type":"string","format":"date-time"}},"required":["on"],"additionalProperties":false,"if":{"properties":{"on":{"const":true}}},"then":{"required":["at"]}}`,
}

// TestStructuredOutput requests every schema at temperature 1, with all slots at once: every
// complete answer is valid, and the same streamed and unstreamed.
func TestStructuredOutput(t *testing.T) {
	w := startWorker(t, 4, 512, "")
	var wg sync.WaitGroup
	var mu sync.Mutex // guards finished
	finished := map[string]int{}
	for i, schema := range schemas {
		v, err := validator([]byte(schema))
		must.NoError(t, err)
		wg.Go(func() {
			for seed := range 4 {
				c := w.chat(t, structured(schemaForm(schema), seed, `,"max_tokens":300,"logprobs":true`)).Choices[0]
				text := *c.Message.Content
				if c.FinishReason == openai.FinishStop {
					if err := validate(v, text); err != nil {
						t.Errorf("schema %d, seed %d: %s: %v", i, seed, text, err)
					}
					mu.Lock()
					finished[schema]++
					mu.Unlock()
				}
				shown := ""
				for _, x := range c.LogProbs.Content {
					for _, b := range x.Bytes {
						shown += string([]byte{byte(b)})
					}
				}
				if shown != text {
					t.Errorf("the tokens %q are not those of %q", shown, text)
				}
				s := w.stream(t.Context(), t, structured(schemaForm(schema), seed, `,"max_tokens":300,"stream":true`), nil)
				if s.text != text || s.finish != c.FinishReason {
					t.Errorf("schema %d, seed %d: streamed %q, whole %q", i, seed, s.text, text)
				}
			}
		})
	}
	wg.Wait()
	for _, schema := range schemas {
		must.Positive(t, finished[schema], must.Sprint(schema))
	}
}

func TestStructuredForms(t *testing.T) {
	w := startWorker(t, 2, 512, "")
	object := func(text string) bool {
		var v map[string]any
		return json.Unmarshal([]byte(text), &v) == nil
	}
	matches := regexp.MustCompile
	for name, c := range map[string]struct {
		form string
		ok   func(text string) bool
	}{
		"json_object":           {`"response_format":{"type":"json_object"}`, object},
		"json_object, schema":   {`"response_format":{"type":"json_object","schema":{"const":{"a":"b"}}}`, matches(`^\{"a":"b"\}$`).MatchString},
		"not strict":            {`"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"const":[true]}}}`, matches(`^\[true\]$`).MatchString},
		"json_schema":           {`"json_schema":{"enum":["a","b"]}`, matches(`^"[ab]"$`).MatchString},
		"grammar":               {`"grammar":"root ::= \"bee \" [0-9] [0-9]? \"!\""`, matches(`^bee [0-9]{1,2}!$`).MatchString},
		"guided_json":           {`"guided_json":{"type":"integer","minimum":10,"maximum":19}`, matches(`^1[0-9]$`).MatchString},
		"guided_json as text":   {`"guided_json":"{\"type\":\"null\"}"`, matches(`^null$`).MatchString},
		"guided_regex":          {`"guided_regex":"(hive|bee){2}"`, matches(`^(hive|bee){2}$`).MatchString},
		"guided_choice":         {`"guided_choice":["yes","no","東京"]`, matches(`^(yes|no|東京)$`).MatchString},
		"guided_grammar":        {`"guided_grammar":"root ::= \"x\" | \"y\""`, matches(`^[xy]$`).MatchString},
		"structured_outputs":    {`"structured_outputs":{"json":{"type":"boolean"}}`, matches(`^(true|false)$`).MatchString},
		"vLLM's choice":         {`"structured_outputs":{"choice":["a"]}`, matches(`^a$`).MatchString},
		"whitespace":            {`"structured_outputs":{"json":{"const":{"a":[]}},"disable_any_whitespace":false}`, object},
		"greedy":                {`"guided_choice":["maybe"],"temperature":0`, matches(`^maybe$`).MatchString},
		"ignores ignore_eos":    {`"guided_choice":["maybe"],"ignore_eos":true`, matches(`^maybe$`).MatchString},
		"beside a bias":         {`"guided_choice":["a","b"],"logit_bias":{"a":-100}`, matches(`^[ab]$`).MatchString},
		"every sampling option": {`"guided_regex":"[ab]{5}","temperature":1.5,"xtc_probability":1,"dry_multiplier":2,"repeat_penalty":1.5`, matches(`^[ab]{5}$`).MatchString},
	} {
		t.Run(name, func(t *testing.T) {
			done := false
			for seed := range 12 {
				c := w.chat(t, structured(c.form, seed, `,"max_tokens":300`)).Choices[0]
				if c.FinishReason == openai.FinishLength && name == "json_object" || name == "whitespace" && c.FinishReason == openai.FinishLength {
					continue // the model did not finish
				}
				must.Eq(t, openai.FinishStop, c.FinishReason)
				done = true
				break
			}
			must.True(t, done)
			text := *w.chat(t, structured(c.form, 3, `,"max_tokens":300`)).Choices[0].Message.Content
			s := w.stream(t.Context(), t, structured(c.form, 3, `,"max_tokens":300,"stream":true`), nil)
			must.Eq(t, text, s.text)
			resp := w.complete(t, `{"prompt":"Bees","seed":1,"max_tokens":300,`+c.form+`}`).Choices[0]
			if name != "json_object" && name != "whitespace" {
				must.True(t, c.ok(text), must.Sprint(text))
				must.True(t, c.ok(resp.Text), must.Sprint(resp.Text))
			} else if *resp.FinishReason == openai.FinishStop {
				must.True(t, c.ok(resp.Text), must.Sprint(resp.Text))
			}
		})
	}
	// The finish reason tells that an answer was cut off.
	c := w.chat(t, structured(`"guided_regex":"[ab]{50}"`, 1, `,"max_tokens":3`)).Choices[0]
	must.Eq(t, openai.FinishLength, c.FinishReason)
	c = w.chat(t, structured(`"guided_choice":["one two"]`, 1, `,"stop":" t"`)).Choices[0]
	must.Eq(t, "one", *c.Message.Content)
	must.Eq(t, openai.FinishStop, c.FinishReason)
}

// A form, several answers, log probabilities, a stop and draft tokens work together: every answer
// has the form up to its stop, and its log probabilities belong to its text, also when streamed.
func TestFormBesideAllElse(t *testing.T) {
	w := startWorker(t, 3, 1024, `{"speculation":true}`)
	form := regexp.MustCompile(`^(bee hive ){3,6}[0-9]{2}$`)
	ask := `"guided_regex":"(bee hive ){3,6}[0-9]{2}[.](never){9}"`
	const more = `,"max_tokens":200,"n":3,"logprobs":true,"top_logprobs":2,"stop":["."]`
	out, _ := w.choices(t, structured(ask, 7, more))
	must.Len(t, 3, out.Choices)
	for _, c := range out.Choices {
		must.Eq(t, openai.FinishStop, c.FinishReason)
		must.RegexMatch(t, form, *c.Message.Content)
		shown := ""
		for _, x := range c.LogProbs.Content {
			must.LessEq(t, 2, len(x.TopLogProbs))
			for _, b := range x.Bytes {
				shown += string([]byte{byte(b)})
			}
		}
		must.StrHasPrefix(t, *c.Message.Content, shown) // the tokens include the stop
	}
	texts := make([]string, 3)
	s := w.stream(t.Context(), t, structured(ask, 7, more+`,"stream":true`), nil)
	for _, chunk := range s.chunks {
		for _, c := range chunk.Choices {
			if c.Delta.Content != nil {
				texts[c.Index] += *c.Delta.Content
			}
		}
	}
	for _, text := range texts {
		must.RegexMatch(t, form, text)
	}
}

func TestStructureRefused(t *testing.T) {
	w := startWorker(t, 1, 128, "")
	for name, c := range map[string]struct{ form, param, says string }{
		"keyword":    {schemaForm(`{"type":"object","properties":{"a/b":{"$ref":"https://example.com/x"}}}`), "response_format", "at #/properties/a~1b, $ref"},
		"no value":   {`"json_schema":{"allOf":[{"type":"string"},{"type":"null"}]}`, "json_schema", "no value satisfies"},
		"no JSON":    {`"guided_json":"{"`, "guided_json", "guided_json cannot be guaranteed"},
		"expression": {`"guided_regex":"(a"`, "guided_regex", "guided_regex cannot be guaranteed"},
		"grammar":    {`"grammar":"root ::= other"`, "grammar", "other"},
		"two forms":  {`"grammar":"root ::= \"x\"","guided_regex":"a"`, "guided_regex", "send one of them"},
		"long":       {`"guided_regex":"` + strings.Repeat("(?<!x)", 1000) + `"`, "guided_regex", "cannot be guaranteed"},
	} {
		for _, stream := range []string{"", `,"stream":true`} {
			t.Run(name+stream, func(t *testing.T) {
				status, e, _ := w.refused(t, "/v1/chat/completions", structured(c.form, 1, stream))
				must.Eq(t, http.StatusBadRequest, status)
				must.Eq(t, c.param, *e.Param)
				must.StrContains(t, e.Message, c.says)
				must.Less(t, 1000, len(e.Message))
			})
		}
	}
}

// TestRuleFails reports to the client what ended its answer, and never a failure of the worker:
// another worker would fail as well.
func TestRuleFails(t *testing.T) {
	t.Parallel()
	r := &rule{param: "guided_json"}
	for err, code := range map[error]string{grammar.ErrExhausted: "schema_too_complex", sampler.ErrNone: "schema_dead_end"} {
		e := r.failed(fmt.Errorf("mask: %w", err))
		must.NotNil(t, e)
		must.Eq(t, http.StatusBadRequest, e.Status)
		must.Eq(t, "guided_json", *e.Param)
		must.Eq(t, code, *e.Code)
		must.Nil(t, (*rule)(nil).failed(err))
	}
	must.Nil(t, r.failed(nil))
	must.Nil(t, r.failed(io.EOF))
}

// TestMaskBench generates answers under many schemas of MaskBench and prints how many were complete
// and valid, and the speed compared with free answers of the same length. Both alternate, a few
// dozen answers each, so that other load slows both; the CPU time of the process is printed beside
// the elapsed time. Drafting is off, as its benefit depends on how repetitive a text is, with or
// without a schema. RBEE_TEST_MASKBENCH names the file, RBEE_TEST_SCHEMAS the number of schemas,
// evenly spread, RBEE_TEST_LIMIT the time after which no further turn begins.
func TestMaskBench(t *testing.T) {
	path := os.Getenv("RBEE_TEST_MASKBENCH")
	if path == "" {
		t.Skip("RBEE_TEST_MASKBENCH is not set: `make bench-structured` sets it")
	}
	want, err := strconv.Atoi(os.Getenv("RBEE_TEST_SCHEMAS"))
	must.NoError(t, err)
	limit, err := time.ParseDuration(os.Getenv("RBEE_TEST_LIMIT"))
	must.NoError(t, err)
	all := readMaskBench(t, path)
	want = min(want, len(all))
	const slots, turn = 4, 40
	b := &maskBench{w: startWorker(t, slots, 4096, `{"speculation":false}`), slots: slots, counts: map[string]int{}}
	began := time.Now()
	done := 0
	for ; done < want && time.Since(began) < limit; done += turn {
		var part []maskBenchItem
		for i := done; i < min(done+turn, want); i++ {
			part = append(part, all[i*len(all)/want])
		}
		b.turn(t, done, part)
	}
	for _, x := range b.bad {
		t.Log(x)
	}
	with, without := b.with, b.without
	t.Logf("%d of %d schemas: %v", min(done, want), want, b.counts)
	t.Logf("tokens/s with a schema %.0f, without %.0f, ratio %.3f", with.rate(with.wall), without.rate(without.wall), with.rate(with.wall)/without.rate(without.wall))
	t.Logf("tokens per second of processor with a schema %.0f, without %.0f, ratio %.3f", with.rate(with.cpu), without.rate(without.cpu), with.rate(with.cpu)/without.rate(without.cpu))
	must.SliceEmpty(t, b.bad)
	must.Positive(t, b.counts["valid"])
}

// maskBench collects the results.
type maskBench struct {
	w     *testWorker
	slots int

	mu            sync.Mutex // guards below
	counts        map[string]int
	bad           []string
	with, without spent
}

// spent is the time that a number of tokens took.
type spent struct {
	tokens    int
	wall, cpu float64 // in seconds; cpu is that of the whole process
}

func (s spent) rate(seconds float64) float64 { return float64(s.tokens) / seconds }

// during adds the time of work, which returns its number of tokens.
func (s *spent) during(t *testing.T, work func() int) {
	began, cpu := time.Now(), processorTime(t)
	s.tokens += work()
	s.wall += time.Since(began).Seconds()
	s.cpu += processorTime(t) - cpu
}

// turn generates an answer under each schema, then free ones with as many tokens.
func (b *maskBench) turn(t *testing.T, seed int, items []maskBenchItem) {
	lengths := make([]int, len(items))
	each := func(do func(i int) int) int {
		var wg sync.WaitGroup
		var mu sync.Mutex // guards total
		total := 0
		next := make(chan int)
		for range b.slots {
			wg.Go(func() {
				for i := range next {
					n := do(i)
					mu.Lock()
					total += n
					mu.Unlock()
				}
			})
		}
		for i := range items {
			next <- i
		}
		close(next)
		wg.Wait()
		return total
	}
	texts := make([]string, len(items))
	b.with.during(t, func() int {
		return each(func(i int) int {
			texts[i], lengths[i] = b.answer(t, seed+i, &items[i])
			return lengths[i]
		})
	})
	b.without.during(t, func() int {
		return each(func(i int) int {
			if lengths[i] == 0 {
				return 0
			}
			_, _, n, _ := b.w.under(t, structured(`"ignore_eos":true`, seed+i, fmt.Sprintf(`,"max_tokens":%d`, lengths[i])))
			return n
		})
	})
	for i, text := range texts {
		if text != "" {
			b.check(&items[i], text)
		}
	}
}

// answer returns an answer under a schema, if complete, and its number of tokens.
func (b *maskBench) answer(t *testing.T, seed int, it *maskBenchItem) (string, int) {
	text, finish, n, refused := b.w.under(t, structured(schemaForm(string(it.Schema)), seed, `,"max_tokens":200`))
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case refused != nil:
		b.counts["refused: "+strconv.Itoa(refused.Status)]++
		return "", 0
	case finish != openai.FinishStop:
		b.counts["cut by max_tokens"]++
		return "", n
	}
	b.counts["finished"]++
	return text, n
}

// check validates a complete answer.
func (b *maskBench) check(it *maskBenchItem, text string) {
	v, err := validator(it.Schema)
	if err != nil {
		b.counts["not taken by the validator"]++
		return
	}
	if err := validate(v, text); err != nil {
		b.counts["INVALID"]++
		b.bad = append(b.bad, fmt.Sprintf("%s: %s: %v", it.Name, text, err))
		return
	}
	b.counts["valid"]++
}

type maskBenchItem struct {
	Name   string          `json:"name"`
	Schema json.RawMessage `json:"schema"`
}

func readMaskBench(t *testing.T, path string) []maskBenchItem {
	t.Helper()
	f, err := os.Open(path)
	must.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	must.NoError(t, err)
	var all []maskBenchItem
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var it maskBenchItem
		must.NoError(t, json.Unmarshal(lines.Bytes(), &it))
		all = append(all, it)
	}
	must.NoError(t, lines.Err())
	return all
}

// under sends a chat request that may be refused.
func (w *testWorker) under(t *testing.T, body string) (text, finish string, tokens int, refused *openai.Error) {
	t.Helper()
	resp := w.post(t.Context(), t, "/v1/chat/completions", body)
	defer func() { _ = resp.Body.Close() }()
	b, err := openai.ReadBody(resp.Body, 64<<20)
	if err != nil {
		t.Error(err)
		return "", "", 0, &openai.Error{}
	}
	if resp.StatusCode != http.StatusOK {
		return "", "", 0, openai.DecodeError(resp.StatusCode, b)
	}
	var out openai.ChatResponse
	if err := json.Unmarshal(b, &out); err != nil || len(out.Choices) != 1 {
		t.Errorf("%s: %v", b, err)
		return "", "", 0, &openai.Error{}
	}
	return *out.Choices[0].Message.Content, out.Choices[0].FinishReason, out.Usage.CompletionTokens, nil
}
