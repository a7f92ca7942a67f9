package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
	"github.com/rbee-project/rbee/plugins/sdk/worker/api"
)

// scripted is a model whose answer is a fixed list of tokens.
type scripted struct {
	tokens []string
	fail   error         // returned after the tokens
	pause  time.Duration // before each token
	asked  []api.Request
	emits  []error // what emit returned
}

func (m *scripted) Generate(ctx context.Context, r api.Request, emit func(string) error) error {
	m.asked = append(m.asked, r)
	for _, token := range m.tokens {
		select {
		case <-time.After(m.pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		err := emit(token)
		m.emits = append(m.emits, err)
		if err != nil {
			return err
		}
	}
	return m.fail
}

func (*scripted) Embed(_ context.Context, texts []string) ([][]float32, error) {
	var list [][]float32
	for _, text := range texts {
		if text == "short" {
			return list[:len(list)-1], nil
		}
		list = append(list, []float32{float32(len(text)), -1})
	}
	return list, nil
}

// letters is a tokenizer with one token per character.
type letters struct{}

func (letters) Tokenize(text string) ([]int32, error) { return []rune(text), nil }

func (letters) Detokenize(tokens []int32) (string, error) { return string(tokens), nil }

func server(m *scripted, log io.Writer) (http.Handler, *worker.Gate) {
	o := api.Options{ModelID: "tiny", Gate: worker.NewGate(1), Model: m, Embedder: m, Tokenizer: letters{}, Log: slog.New(slog.NewTextHandler(log, nil))}
	return api.New(o), o.Gate
}

func ask(ctx context.Context, h http.Handler, path, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, path, strings.NewReader(body))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

const (
	chatPath = "/v1/chat/completions"
	textPath = "/v1/completions"
)

// read returns what a client sees of a whole or streamed answer.
func read(t *testing.T, w *httptest.ResponseRecorder) (text, finish string, u *openai.Usage, fail *openai.Error) {
	t.Helper()
	if w.Header().Get("Content-Type") != "text/event-stream" {
		var r struct {
			Choices []struct {
				Text         string `json:"text"`
				Message      struct{ Content string }
				FinishReason string `json:"finish_reason"`
			}
			Usage *openai.Usage
			Error *openai.Error
		}
		must.NoError(t, json.Unmarshal(w.Body.Bytes(), &r))
		if r.Error != nil {
			return "", "", nil, r.Error
		}
		must.Len(t, 1, r.Choices)
		return r.Choices[0].Text + r.Choices[0].Message.Content, r.Choices[0].FinishReason, r.Usage, nil
	}
	events := openai.NewEventReader(w.Body)
	for {
		e, err := events.Next()
		if errors.Is(err, io.EOF) {
			return text, finish, u, openai.NewError(0, "no [DONE]", "", "", "")
		}
		must.NoError(t, err)
		if e.IsDone() {
			return text, finish, u, nil
		}
		if fail := openai.ErrorIn(e.Data); fail != nil {
			return text, finish, u, fail
		}
		var c struct {
			Choices []struct {
				Text         string
				Delta        struct{ Content string }
				FinishReason *string `json:"finish_reason"`
			}
			Usage *openai.Usage
		}
		must.NoError(t, json.Unmarshal(e.Data, &c))
		for _, x := range c.Choices {
			text += x.Text + x.Delta.Content
			if x.FinishReason != nil {
				finish = *x.FinishReason
			}
		}
		if c.Usage != nil {
			u = c.Usage
		}
	}
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	words := []string{"one", " t", "wo", " three"}
	for name, c := range map[string]struct {
		tokens       []string
		request      string // further fields
		text, finish string
		count        int
	}{
		"to the end":              {words, ``, "one two three", "stop", 4},
		"max_tokens":              {words, `,"max_tokens":2`, "one t", "length", 2},
		"max_tokens of the whole": {words, `,"max_tokens":4`, "one two three", "length", 4},
		"no tokens":               {words, `,"max_tokens":0`, "", "length", 0},
		"stop across tokens":      {words, `,"stop":"two"`, "one ", "stop", 3},
		"stop that did not come":  {words, `,"stop":["threes"]`, "one two three", "stop", 4},
		"length within a stop":    {words, `,"stop":"two","max_tokens":2`, "one t", "length", 2},
		"character in parts":      {[]string{"z\xc3", "\xbcrich"}, ``, "zürich", "stop", 2},
		"no text":                 {nil, ``, "", "stop", 0},
	} {
		for _, stream := range []string{"", `,"stream":true,"stream_options":{"include_usage":true}`} {
			for path, prompt := range map[string]string{chatPath: `"messages":[{"role":"user","content":"hi"}]`, textPath: `"prompt":"hi"`} {
				h, gate := server(&scripted{tokens: c.tokens}, io.Discard)
				text, finish, u, fail := read(t, ask(t.Context(), h, path, `{"model":"tiny",`+prompt+c.request+stream+`}`))
				what := must.Sprint(name, path, stream)
				must.Nil(t, fail, what)
				must.Eq(t, c.text, text, what)
				must.Eq(t, c.finish, finish, what)
				must.Eq(t, &openai.Usage{PromptTokens: 2, CompletionTokens: c.count, TotalTokens: 2 + c.count}, u, what)
				var st worker.Status
				gate.Fill(&st)
				must.Eq(t, int64(c.count), st.TokensTotal, what)
				must.Zero(t, st.Active+st.Queued, what)
			}
		}
	}
}

// The model receives the request, and learns at once when no more text is wanted.
func TestModelStop(t *testing.T) {
	t.Parallel()
	m := &scripted{tokens: []string{"a", "b", "c"}}
	h, _ := server(m, io.Discard)
	ask(t.Context(), h, chatPath, `{"messages":[{"role":"system","content":"Be kind."},{"role":"user","content":[{"type":"text","text":"hi"}]}],"max_tokens":2,"temperature":0.5}`)
	must.Len(t, 2, m.emits)
	must.NoError(t, m.emits[0])
	must.Error(t, m.emits[1])
	r := m.asked[0]
	must.Eq(t, "system: Be kind.\nuser: hi\nassistant:", r.Prompt)
	must.Len(t, 2, r.Messages)
	must.Eq(t, 2, r.MaxTokens)
	must.Eq(t, 0.5, *r.Sampling.Temperature)
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	const hi = `"messages":[{"role":"user","content":"hi"}]`
	for name, c := range map[string]struct {
		path, body string
		status     int
		param      string
	}{
		"not JSON":           {chatPath, `{`, 400, ""},
		"no messages":        {chatPath, `{"messages":[]}`, 400, "messages"},
		"two answers":        {chatPath, `{"n":2,` + hi + `}`, 400, "n"},
		"tools":              {chatPath, `{"tools":[{"type":"function","function":{"name":"f"}}],` + hi + `}`, 400, "tools"},
		"form":               {chatPath, `{"response_format":{"type":"json_object"},` + hi + `}`, 400, "response_format"},
		"grammar":            {chatPath, `{"grammar":"root ::= [a]",` + hi + `}`, 400, "grammar"},
		"logprobs":           {chatPath, `{"logprobs":true,` + hi + `}`, 400, "logprobs"},
		"picture":            {chatPath, `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]}`, 400, "messages"},
		"unknown part":       {chatPath, `{"messages":[{"role":"user","content":[{"type":"smell"}]}]}`, 400, "messages"},
		"two prompts":        {textPath, `{"prompt":["a","b"]}`, 400, "prompt"},
		"echo":               {textPath, `{"prompt":"a","echo":true}`, 400, "echo"},
		"suffix":             {textPath, `{"prompt":"a","suffix":"b"}`, 400, "suffix"},
		"best_of":            {textPath, `{"prompt":"a","best_of":2}`, 400, "best_of"},
		"regular expression": {textPath, `{"prompt":"a","guided_regex":"b"}`, 400, "guided_regex"},
		"dimensions":         {"/v1/embeddings", `{"model":"tiny","input":"a","dimensions":2}`, 400, "dimensions"},
		"vectors that lack":  {"/v1/embeddings", `{"model":"tiny","input":["a","short"]}`, 500, ""},
		"no such route":      {"/v1/smells", `{}`, 404, ""},
		"another method":     {"/v1/models", `{}`, 405, ""},
	} {
		m := &scripted{}
		h, _ := server(m, io.Discard)
		w := ask(t.Context(), h, c.path, c.body)
		must.Eq(t, c.status, w.Code, must.Sprint(name, w.Body))
		_, _, _, fail := read(t, w)
		must.NotNil(t, fail, must.Sprint(name))
		param := ""
		if fail.Param != nil {
			param = *fail.Param
		}
		must.Eq(t, c.param, param, must.Sprint(name))
		must.SliceEmpty(t, m.asked, must.Sprint(name))
	}
}

// Errors within the model are logged; an *openai.Error goes to the client. Before the first text it
// has its own status; after it, the stream ends without [DONE].
func TestModelFails(t *testing.T) {
	t.Parallel()
	secret := errors.New("open /secret/place")
	for name, c := range map[string]struct {
		m              scripted
		status         int
		message, typ   string
		streamed, logs bool
	}{
		"before the first token": {scripted{fail: secret}, 500, "the model failed", openai.TypeServer, false, true},
		"for the client":         {scripted{fail: openai.Invalid("messages", "too sad")}, 400, "too sad", openai.TypeInvalidRequest, false, false},
		"in the middle":          {scripted{tokens: []string{"a"}, fail: secret}, 200, "the model failed", openai.TypeServer, true, true},
	} {
		var log bytes.Buffer
		h, gate := server(&c.m, &log)
		w := ask(t.Context(), h, chatPath, `{"stream":true,"messages":[{"role":"user","content":"hi"}]}`)
		must.Eq(t, c.status, w.Code, must.Sprint(name))
		must.StrNotContains(t, w.Body.String(), "secret")
		text, _, _, fail := read(t, w)
		must.StrContains(t, fail.Message, c.message, must.Sprint(name))
		must.Eq(t, c.typ, fail.Type)
		must.Eq(t, c.streamed, text == "a")
		must.Eq(t, c.logs, strings.Contains(log.String(), "/secret/place"))
		var st worker.Status
		gate.Fill(&st)
		must.Zero(t, st.Active)
	}
}

// A request ends when its client disconnects, in its slot or in the queue; the next one is
// answered.
func TestClientGoesAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := &scripted{tokens: []string{"a", "b"}, pause: time.Hour}
		h, gate := server(m, io.Discard)
		load := func() (active, queued int) {
			synctest.Wait()
			var st worker.Status
			gate.Fill(&st)
			return st.Active, st.Queued
		}
		ctx, cancel := context.WithCancel(t.Context())
		waiting, giveUp := context.WithCancel(t.Context())
		go ask(ctx, h, textPath, `{"prompt":"a","stream":true}`)
		synctest.Wait()
		go ask(waiting, h, textPath, `{"prompt":"a","stream":true}`)
		active, queued := load()
		must.Eq(t, [2]int{1, 1}, [2]int{active, queued})
		giveUp()
		active, queued = load()
		must.Eq(t, [2]int{1, 0}, [2]int{active, queued})
		cancel()
		active, queued = load()
		must.Eq(t, [2]int{0, 0}, [2]int{active, queued})
		m.pause = 0
		must.Eq(t, 200, ask(t.Context(), h, textPath, `{"prompt":"a"}`).Code)
	})
}

func TestStopEndsAnswers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, gate := server(&scripted{tokens: []string{"a", "b"}, pause: time.Hour}, io.Discard)
		answer := make(chan *httptest.ResponseRecorder, 1)
		go func() { answer <- ask(t.Context(), h, textPath, `{"prompt":"a"}`) }()
		synctest.Wait()
		must.NoError(t, gate.Stop(t.Context(), time.Second))
		w := <-answer
		must.Eq(t, 503, w.Code)
		must.Eq(t, 503, ask(t.Context(), h, textPath, `{"prompt":"a"}`).Code)
	})
}

func TestEmbeddings(t *testing.T) {
	t.Parallel()
	h, _ := server(&scripted{}, io.Discard)
	w := ask(t.Context(), h, "/v1/embeddings", `{"model":"tiny","input":["a","bcd"]}`)
	must.Eq(t, `{"object":"list","data":[{"object":"embedding","index":0,"embedding":[1,-1]},{"object":"embedding","index":1,"embedding":[3,-1]}],"model":"tiny","usage":{"prompt_tokens":4,"total_tokens":4}}`+"\n", w.Body.String())
	w = ask(t.Context(), h, "/v1/embeddings", `{"model":"tiny","input":[[98,99]],"encoding_format":"base64"}`)
	must.StrContains(t, w.Body.String(), `"embedding":"AAAAQAAAgL8="`)
}

func TestTokens(t *testing.T) {
	t.Parallel()
	h, _ := server(&scripted{}, io.Discard)
	for path, c := range map[string][2]string{
		"/tokenize":                {`{"content":["ab",99]}`, `{"tokens":[97,98,99]}`},
		"/detokenize":              {`{"tokens":[97,98]}`, `{"content":"ab"}`},
		"/apply-template":          {`{"messages":[{"role":"user","content":"hi"}]}`, `{"prompt":"hi"}`},
		chatPath + "/input_tokens": {`{"messages":[{"role":"user","content":"hi"}]}`, `{"object":"response.input_tokens","input_tokens":2}`},
	} {
		must.Eq(t, c[1]+"\n", ask(t.Context(), h, path, c[0]).Body.String(), must.Sprint(path))
	}
}

// A worker serves only the routes that match its capabilities.
func TestRoutesFollowCapabilities(t *testing.T) {
	t.Parallel()
	o := api.Options{ModelID: "tiny", Gate: worker.NewGate(1), Embedder: &scripted{}}
	must.Eq(t, []string{worker.CapabilityEmbeddings}, o.Capabilities())
	h := api.New(o)
	must.Eq(t, 404, ask(t.Context(), h, chatPath, `{}`).Code)
	must.Eq(t, 404, ask(t.Context(), h, "/tokenize", `{}`).Code)
	must.Eq(t, 200, ask(t.Context(), h, "/v1/embeddings", `{"model":"tiny","input":"two words"}`).Code)
}
