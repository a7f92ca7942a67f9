package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	openaisdk "github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/plugins/llamacpp/llamatest"
)

// recorded is one prompt of plugins/llamacpp/testdata/prompts.json: a question and its tokens for
// the model.
type recorded struct {
	Prompt string            `json:"question"`
	Tokens []llamatest.Token `json:"tokens"`
}

func recordings(t testing.TB) []recorded {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "plugins", "llamacpp", "testdata", "prompts.json"))
	must.NoError(t, err)
	var list []recorded
	must.NoError(t, json.Unmarshal(b, &list))
	must.GreaterEq(t, 10, len(list))
	return list
}

// said is an answer to compare with the plain loop's.
type said struct {
	Tokens []llamatest.Token // of the prompt
	Limit  int
	Text   string
}

const plainLoopVariable = "RBEE_TEST_PLAIN_LOOP"

// asThePlainLoop checks answers against llama.cpp's own loop over rbee-tiny, which determines what
// a worker should answer on this machine. It runs in a separate process, because C libraries do not
// belong in one that starts processes in other namespaces.
func asThePlainLoop(t testing.TB, answers ...said) {
	t.Helper()
	b, err := json.Marshal(answers)
	must.NoError(t, err)
	cmd := exec.CommandContext(patient(t), os.Args[0], "-test.run=^TestPlainLoop$", "-test.v")
	cmd.Env = append(os.Environ(), plainLoopVariable+"=1")
	cmd.Stdin = bytes.NewReader(b)
	r := run(t, cmd)
	must.Eq(t, 0, r.code, must.Sprint(r.stdout, r.stderr))
	must.StrContains(t, r.stdout, fmt.Sprintf("%d answers are the plain loop's", len(answers)))
}

// TestPlainLoop is the process that asThePlainLoop starts.
func TestPlainLoop(t *testing.T) {
	if os.Getenv(plainLoopVariable) == "" {
		t.Skip("other tests start it")
	}
	var answers []said
	must.NoError(t, json.NewDecoder(os.Stdin).Decode(&answers))
	llamatest.Load(t, engineDir(t))
	loop := llamatest.New(t, filepath.Join("..", "..", "..", "plugins", "catalog-builtin", "rbee-tiny.gguf"))
	for _, a := range answers {
		must.NoError(t, loop.Check(t, a.Tokens, a.Limit, a.Text))
	}
	t.Logf("%d answers are the plain loop's", len(answers))
}

// engineDir returns the folder of the engine's libraries; the test is skipped without one.
func engineDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("RBEE_TEST_ENGINE_DIR")
	if dir == "" {
		t.Skip("RBEE_TEST_ENGINE_DIR is not set: `make test` fetches the engine and sets it")
	}
	return dir
}

func TestInferAnswersAsLlamaCppDoes(t *testing.T) {
	t.Parallel()
	engineDir(t)
	a := startAgent(t, agentOptions{})
	out := a.must("infer", "--model", "rbee-tiny", "--prompt", "What is a queen?")
	must.StrContains(t, out, "queen")
	var answers []said
	for _, r := range recordings(t) {
		got := a.must("infer", "--model", "rbee-tiny", "--temperature", "0", "--max-tokens", "200", "--prompt", r.Prompt)
		text, ended := strings.CutSuffix(got, "\n") // the command adds a final newline
		must.True(t, ended)
		answers = append(answers, said{r.Tokens, 200, text})
	}
	asThePlainLoop(t, answers...)
}

func sdk(a *agent) openaisdk.Client {
	return openaisdk.NewClient(option.WithBaseURL("http://"+a.addr+"/v1"), option.WithAPIKey("any"), option.WithMaxRetries(0))
}

func question(prompt string) openaisdk.ChatCompletionNewParams {
	return openaisdk.ChatCompletionNewParams{
		Model:       "rbee-tiny",
		Messages:    []openaisdk.ChatCompletionMessageParamUnion{openaisdk.UserMessage(prompt)},
		Temperature: openaisdk.Float(0),
		MaxTokens:   openaisdk.Int(64),
	}
}

func TestConcurrentRequestsGiveTheTextOfSingleOnes(t *testing.T) {
	t.Parallel()
	engineDir(t)
	a := startAgent(t, agentOptions{})
	a.spawn("--slots", "8")
	client := sdk(a)
	ask := func(prompt string) (string, error) {
		r, err := client.Chat.Completions.New(t.Context(), question(prompt))
		if err != nil {
			return "", err
		}
		return r.Choices[0].Message.Content, nil
	}
	prompts := recordings(t)[:8]
	single := make([]string, len(prompts))
	for i, p := range prompts {
		var err error
		single[i], err = ask(p.Prompt)
		must.NoError(t, err)
	}
	together := make([]string, len(prompts))
	errs := make([]error, len(prompts))
	var wg sync.WaitGroup
	for i, p := range prompts {
		wg.Go(func() { together[i], errs[i] = ask(p.Prompt) })
	}
	wg.Wait()
	must.NoError(t, errors.Join(errs...))
	var answers []said
	for i, p := range prompts {
		answers = append(answers, said{p.Tokens, 64, single[i]}, said{p.Tokens, 64, together[i]})
	}
	asThePlainLoop(t, answers...)
	a.spawn("--slots", "8")
	conversationsStay(t, a)
}

func TestOpenAISDK(t *testing.T) {
	t.Parallel()
	a := startAgent(t, agentOptions{})
	client := sdk(a)

	t.Run("a plain request starts the worker that is missing", func(t *testing.T) {
		r, err := client.Chat.Completions.New(t.Context(), question("What is a hive?"))
		must.NoError(t, err)
		must.StrContains(t, r.Choices[0].Message.Content, "worker")
		must.Eq(t, "stop", r.Choices[0].FinishReason)
		must.Eq(t, r.Usage.PromptTokens+r.Usage.CompletionTokens, r.Usage.TotalTokens)
		must.Positive(t, r.Usage.CompletionTokens)
	})
	t.Run("Anthropic's client runs a loop of tools", func(t *testing.T) { anthropicLoop(t, a.addr) })
	t.Run("stream with usage", func(t *testing.T) {
		whole, err := client.Chat.Completions.New(t.Context(), question("What does the queen do?"))
		must.NoError(t, err)
		p := question("What does the queen do?")
		p.StreamOptions.IncludeUsage = openaisdk.Bool(true)
		stream := client.Chat.Completions.NewStreaming(t.Context(), p)
		var acc openaisdk.ChatCompletionAccumulator
		for stream.Next() {
			must.True(t, acc.AddChunk(stream.Current()))
		}
		must.NoError(t, stream.Err())
		must.Eq(t, whole.Choices[0].Message.Content, acc.Choices[0].Message.Content)
		must.Eq(t, whole.Usage.TotalTokens, acc.Usage.TotalTokens)
	})
	t.Run("legacy completion", func(t *testing.T) {
		r, err := client.Completions.New(t.Context(), openaisdk.CompletionNewParams{
			Model: "rbee-tiny", Prompt: openaisdk.CompletionNewParamsPromptUnion{OfString: openaisdk.String("Once upon a time")},
			MaxTokens: openaisdk.Int(5), Temperature: openaisdk.Float(0),
		})
		must.NoError(t, err)
		must.Eq(t, 5, r.Usage.CompletionTokens)
		must.Eq(t, "length", string(r.Choices[0].FinishReason))
	})
	t.Run("JSON schema and log probabilities", func(t *testing.T) {
		p := question("Tell me about a bee.")
		p.Temperature, p.Seed, p.Logprobs, p.TopLogprobs = openaisdk.Float(1), openaisdk.Int(1), openaisdk.Bool(true), openaisdk.Int(2)
		form := func(schema any) openaisdk.ChatCompletionNewParamsResponseFormatUnion {
			return openaisdk.ChatCompletionNewParamsResponseFormatUnion{OfJSONSchema: &openaisdk.ResponseFormatJSONSchemaParam{
				JSONSchema: openaisdk.ResponseFormatJSONSchemaJSONSchemaParam{Name: "bee", Strict: openaisdk.Bool(true), Schema: schema},
			}}
		}
		p.ResponseFormat = form(json.RawMessage(`{"type":"object","properties":{"kind":{"enum":["queen","drone"]},"alive":{"type":"boolean"}},"required":["kind","alive"],"additionalProperties":false}`))
		r, err := client.Chat.Completions.New(t.Context(), p)
		must.NoError(t, err)
		must.RegexMatch(t, regexp.MustCompile(`^\{"kind":"(queen|drone)","alive":(true|false)\}$`), r.Choices[0].Message.Content)
		text := ""
		for _, x := range r.Choices[0].Logprobs.Content {
			text += x.Token
			must.SliceLen(t, 2, x.TopLogprobs)
		}
		must.Eq(t, r.Choices[0].Message.Content, text)
		stream := client.Chat.Completions.NewStreaming(t.Context(), p)
		var acc openaisdk.ChatCompletionAccumulator
		for stream.Next() {
			must.True(t, acc.AddChunk(stream.Current()))
		}
		must.NoError(t, stream.Err())
		must.Eq(t, text, acc.Choices[0].Message.Content)
		must.SliceLen(t, len(r.Choices[0].Logprobs.Content), acc.Choices[0].Logprobs.Content)

		p.ResponseFormat = form(map[string]any{"$ref": "https://example.com/x"})
		_, err = client.Chat.Completions.New(t.Context(), p)
		api, ok := errors.AsType[*openaisdk.Error](err)
		must.True(t, ok, must.Sprint(err))
		must.Eq(t, http.StatusBadRequest, api.StatusCode)
		must.StrContains(t, api.Message, "at #, $ref")
	})
	t.Run("errors", func(t *testing.T) {
		p := question("hello")
		p.Model = "rbee-tyni"
		_, err := client.Chat.Completions.New(t.Context(), p)
		api, ok := errors.AsType[*openaisdk.Error](err)
		must.True(t, ok, must.Sprint(err))
		must.Eq(t, http.StatusNotFound, api.StatusCode)
		must.Eq(t, "model_not_found", api.Code)
		must.StrContains(t, api.RawJSON(), "rbee-tiny") // suggests the nearest name

		p = question("hello")
		p.Temperature = openaisdk.Float(-1)
		_, err = client.Chat.Completions.New(t.Context(), p)
		api, ok = errors.AsType[*openaisdk.Error](err)
		must.True(t, ok, must.Sprint(err))
		must.Eq(t, http.StatusBadRequest, api.StatusCode)
	})
	t.Run("models", func(t *testing.T) {
		page, err := client.Models.List(t.Context())
		must.NoError(t, err)
		must.SliceContainsFunc(t, page.Data, "rbee-tiny", func(m openaisdk.Model, id string) bool { return m.ID == id })
		m, err := client.Models.Get(t.Context(), "rbee-tiny")
		must.NoError(t, err)
		must.Eq(t, "rbee-tiny", m.ID)
	})
	t.Run("llama-server's own routes", func(t *testing.T) { llamaServerRoutes(t, a.addr) })
	t.Run("cancel", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		stream := client.Chat.Completions.NewStreaming(ctx, question("Tell me a short story about a bee named Pip."))
		must.True(t, stream.Next())
		cancel()
		for stream.Next() {
		}
		must.ErrorIs(t, stream.Err(), context.Canceled)
		active := workerStatus(t, a)
		coretest.Eventually(t, patience, func() error {
			if n := active(t); n != 0 {
				return fmt.Errorf("%d requests are still worked on", n)
			}
			return nil
		})
	})
}

// llamaServerRoutes sends requests like llama-server's clients, which name no model.
func llamaServerRoutes(t *testing.T, addr string) {
	t.Helper()
	ask := func(method, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, strings.NewReader(body))
		must.NoError(t, err)
		resp, err := http.DefaultClient.Do(req)
		must.NoError(t, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		must.NoError(t, err)
		return resp.StatusCode, string(b)
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"GET", "/health", "", 200, `"ok"`},
		{"GET", "/v1/health", "", 200, `"ok"`},
		{"GET", "/props", "", 200, `"model_path":"rbee-tiny"`},
		{"GET", "/props?model=rbee-tiny", "", 200, `"chat_template":"`},
		{"GET", "/slots", "", 200, `"is_processing":false`},
		{"GET", "/lora-adapters", "", 200, `[]`},
		{"POST", "/tokenize", `{"content":"Hello"}`, 200, `{"tokens":[1028]}`},
		{"POST", "/apply-template", `{"messages":[{"role":"user","content":"hi"}]}`, 200, "im_start"},
		{"POST", "/completion", `{"prompt":"The queen","n_predict":4,"ignore_eos":true}`, 200, `"tokens_predicted":4`},
		{"POST", "/completion", `{"prompt":"The queen","n_predict":4,"ignore_eos":true,"stream":true}`, 200, `"stop":true`},
		{"POST", "/infill", `{"input_prefix":"a","input_suffix":"b"}`, 400, "infill"},
		{"POST", "/v1/completions", `{"model":"rbee-tiny","prompt":"a","suffix":"b"}`, 400, `"param":"suffix"`},
		{"POST", "/v1/chat/completions", `{"model":"rbee-tiny","max_tokens":2,"messages":[{"role":"user","content":"hi"}]}`, 200, `"predicted_per_second":`},
	} {
		status, body := ask(c.method, c.path, c.body)
		must.Eq(t, c.status, status, must.Sprint(c.path, body))
		must.StrContains(t, body, c.says)
		must.StrNotContains(t, body, ".gguf")
		must.StrNotContains(t, body, "[DONE]")
	}
}

// anthropicLoop makes requests with a tool that must be called, both plain and streamed, sends the
// result and gets an answer.
func anthropicLoop(t *testing.T, addr string) {
	t.Helper()
	client := anthropic.NewClient(anthropicoption.WithBaseURL("http://"+addr), anthropicoption.WithAPIKey("any"), anthropicoption.WithMaxRetries(0))
	ask := anthropic.MessageNewParams{
		Model: "rbee-tiny", MaxTokens: 200, System: []anthropic.TextBlockParam{{Text: "Use tools."}},
		Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("What is the weather in Bern?"))},
		Tools: []anthropic.ToolUnionParam{{OfTool: &anthropic.ToolParam{Name: "weather", InputSchema: anthropic.ToolInputSchemaParam{
			Properties: map[string]any{"city": map[string]any{"type": "string", "enum": []string{"Bern", "Oslo"}}}, Required: []string{"city"},
			ExtraFields: map[string]any{"additionalProperties": false},
		}}}},
		ToolChoice: anthropic.ToolChoiceUnionParam{OfAny: &anthropic.ToolChoiceAnyParam{DisableParallelToolUse: anthropic.Bool(true)}},
	}
	called := func(m *anthropic.Message) anthropic.ToolUseBlock {
		t.Helper()
		must.Eq(t, anthropic.StopReasonToolUse, m.StopReason)
		must.Len(t, 1, m.Content)
		call := m.Content[0].AsToolUse()
		must.Eq(t, "weather", call.Name)
		must.RegexMatch(t, regexp.MustCompile(`^\{"city": ?"(Bern|Oslo)"\}$`), string(call.Input))
		return call
	}
	whole, err := client.Messages.New(t.Context(), ask)
	must.NoError(t, err)
	called(whole)
	stream := client.Messages.NewStreaming(t.Context(), ask)
	defer stream.Close()
	var joined anthropic.Message
	for stream.Next() {
		must.NoError(t, joined.Accumulate(stream.Current()))
	}
	must.NoError(t, stream.Err())
	call := called(&joined)

	ask.Messages = append(ask.Messages, joined.ToParam(), anthropic.NewUserMessage(anthropic.NewToolResultBlock(call.ID, "sunny, 21 degrees", false)))
	ask.ToolChoice = anthropic.ToolChoiceUnionParam{OfNone: &anthropic.ToolChoiceNoneParam{}}
	answer, err := client.Messages.New(t.Context(), ask)
	must.NoError(t, err)
	must.Eq(t, "text", answer.Content[0].Type)
	must.NotEq(t, "", answer.Content[0].AsText().Text)
}

func TestInterruptOfInferStopsTheGeneration(t *testing.T) {
	t.Parallel()
	a := startAgent(t, agentOptions{config: configured(t)})
	spawned := a.spawnModel("file:" + slowModel(t))
	active := workerStatus(t, a)
	cmd := a.command(t.Context(), "infer", "--model", spawned.Worker.Model, "--prompt", "Tell me a story.")
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must.NoError(t, cmd.Start())
	coretest.Eventually(t, patience, func() error {
		if active(t) != 1 {
			return errors.New("not generating yet")
		}
		return nil
	})
	start := time.Now()
	must.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	for active(t) != 0 {
		must.Less(t, patience, time.Since(start))
	}
	took := time.Since(start)
	_ = cmd.Wait()
	must.Eq(t, 130, cmd.ProcessState.ExitCode(), must.Sprint(out.String()))
	t.Logf("the worker was idle %s after the interrupt", took)
	// The promise is 100 ms; a machine that runs all tests at once gets a multiple, and the
	// benchmark measures it alone.
	must.Less(t, 5*time.Second, took)
}

func TestFirstInferFetchesTheEngineAndTheModel(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	a := startAgent(t, agentOptions{store: store})
	must.Len(t, 0, jsonOf[[]core.WorkerBinary](a, "worker", "binary", "list"))
	r := a.rbee("infer", "--model", "rbee-tiny", "--prompt", "What is 7 + 5?")
	must.Eq(t, 0, r.code, must.Sprint(r.stderr))
	must.StrContains(t, r.stdout, "12")
	must.StrContains(t, r.stderr, "MiB") // the progress of the download
	binaries := jsonOf[[]core.WorkerBinary](a, "worker", "binary", "list")
	must.Len(t, 1, binaries)
	must.Eq(t, "cpu", binaries[0].Type)
	must.Eq(t, "", binaries[0].Damaged)
	must.Len(t, 1, binaries[0].InUseBy)
	must.Eq(t, "rbee-tiny", jsonOf[[]core.Model](a, "model", "list")[0].ID)
	must.Eq(t, "rbee-tiny", jsonOf[[]core.Worker](a, "ps")[0].Model)
	must.Len(t, 1, jsonOf[[]core.Process](a, "worker", "process", "list", "--hive", "localhost"))
}

func TestInferStartsAnAgentInTheBackground(t *testing.T) {
	t.Parallel()
	a := &agent{t: t, home: t.TempDir(), dir: shortDir(t)}
	a.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + a.home, "TMPDIR=" + a.dir, "RBEE_STORE_DIR=" + sharedStore(t), "RBEE_BIND_HTTP_PORT=0"}
	rbee := func(args ...string) result {
		// Do not use the test's context, which has ended when the clean-up stops the agent.
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		cmd := a.command(ctx, args...)
		cmd.Env = a.env // no RBEE_ADDR
		return run(t, cmd)
	}
	t.Cleanup(func() { rbee("agent", "stop") })
	r := rbee("infer", "--model", "rbee-tiny", "--prompt", "What is a queen?")
	must.Eq(t, 0, r.code, must.Sprint(r.stderr))
	must.StrContains(t, r.stdout, "queen")
	must.StrContains(t, r.stderr, "rbee agent stop")
	// The second finds the first one's agent and its loaded worker.
	again := rbee("infer", "--model", "rbee-tiny", "--prompt", "What is a queen?")
	must.Eq(t, 0, again.code, must.Sprint(again.stderr))
	must.Eq(t, r.stdout, again.stdout)
	must.StrNotContains(t, again.stderr, "rbee agent stop")

	stop := rbee("agent", "stop")
	must.Eq(t, 0, stop.code, must.Sprint(stop.stderr))
	must.NotEq(t, 0, rbee("ps").code)
	must.Eq(t, 0, rbee("agent", "stop").code)
}

func TestChatIsAConversation(t *testing.T) {
	t.Parallel()
	a := startAgent(t, agentOptions{})
	cmd := a.command(t.Context(), "chat", "rbee-tiny")
	cmd.Stdin = strings.NewReader("What is a queen?\nWhat is 7 + 5?\n/bye\n")
	r := run(t, cmd)
	must.Eq(t, 0, r.code, must.Sprint(r.stderr))
	must.StrContains(t, r.stdout, "queen")
	must.StrContains(t, r.stdout, "12")
}
