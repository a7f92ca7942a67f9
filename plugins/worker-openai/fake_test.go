package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// quirksEnv makes the test's executable play a server; its value is the quirks as JSON.
const quirksEnv = "RBEE_TEST_SERVER"

// quirks are a fake server's deviations.
type quirks struct {
	Errors    string   // shape of errors: "" OpenAI's, "fastapi", "ollama"
	Names     []string // of its models; empty: accepts any name
	MaxLen    int      // reported as vLLM does
	NoList    bool     // has no /v1/models
	Loading   int      // generation requests to refuse with 503 before it is ready, while its health is fine
	Never     bool     // never finishes loading
	Comments  bool     // sends comments before and within streams
	Late      bool     // sends headers only with the first token
	Closes    bool     // closes its connection after a stream, unannounced
	Ignores   bool     // silently ignores tools, formats and logprobs
	Embeds    bool     // supports only embeddings
	Delay     string   // between tokens
	Crash     bool     // exits in the middle of the second stream
	Deaf      bool     // ignores SIGTERM
	Flood     bool     // floods its log
	DieWith   string   // exits at once with this message
	Error200  bool     // sends errors with status 200
	TokenAuth string   // required API key
	Args      bool     // logs its arguments and environment
}

// fakeServer answers with the words of its prompt, one token each.
type fakeServer struct {
	quirks
	asked   atomic.Int64
	streams atomic.Int64
}

func TestMain(m *testing.M) {
	if text := os.Getenv(quirksEnv); text != "" {
		playServer(text)
		return
	}
	if socket := os.Getenv(relayEnv); socket != "" {
		playRelay(socket)
		return
	}
	os.Exit(m.Run())
}

func playServer(text string) {
	var q quirks
	if err := json.Unmarshal([]byte(text), &q); err != nil {
		fmt.Println("quirks:", err)
		os.Exit(9)
	}
	if q.DieWith != "" {
		fmt.Println(q.DieWith)
		os.Exit(7)
	}
	if q.Args {
		fmt.Println("args", strings.Join(os.Args[1:], " "))
		fmt.Println("device", os.Getenv("CUDA_VISIBLE_DEVICES"))
		fmt.Println("secret", os.Getenv("RBEE_PLUGIN"))
	}
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGTERM)
	network, address := "tcp", ""
	for i, a := range os.Args {
		switch a {
		case "--socket":
			network, address = "unix", os.Args[i+1]
		case "--port":
			address = "127.0.0.1:" + os.Args[i+1]
		}
	}
	if q.Flood {
		go func() {
			for {
				fmt.Println(strings.Repeat("flood ", 30))
			}
		}()
	}
	l, err := net.Listen(network, address)
	if err != nil {
		fmt.Println("listen:", err)
		os.Exit(8)
	}
	fmt.Println("listening")
	go func() { _ = http.Serve(l, &fakeServer{quirks: q}) }() //nolint:gosec // ends with the process
	<-ch
	if q.Deaf {
		<-ch
		<-ch
		<-ch
	}
	fmt.Println("ending")
}

func (f *fakeServer) refuse(w http.ResponseWriter, status int, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	shown := status
	if f.Error200 {
		shown = http.StatusOK
	}
	w.Header().Set("Content-Type", "application/json")
	switch f.Errors {
	case "fastapi":
		if status == http.StatusBadRequest {
			w.WriteHeader(http.StatusUnprocessableEntity)
			fmt.Fprintf(w, `{"detail":[{"type":"value_error","loc":["body"],"msg":%q}]}`, text)
			return
		}
		w.WriteHeader(shown)
		fmt.Fprintf(w, `{"detail":%q}`, text)
	case "ollama":
		w.WriteHeader(shown)
		fmt.Fprintf(w, `{"error":%q}`, text)
	default:
		w.WriteHeader(shown)
		fmt.Fprintf(w, `{"error":{"code":%d,"message":%q,"type":"invalid_request_error"}}`, status, text)
	}
}

func (f *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case f.TokenAuth != "" && r.Header.Get("Authorization") != "Bearer "+f.TokenAuth:
		f.refuse(w, http.StatusUnauthorized, "wrong key")
	case r.URL.Path == "/health":
	case r.URL.Path == "/v1/models" && !f.NoList:
		var list []string
		for _, name := range f.Names {
			list = append(list, fmt.Sprintf(`{"id":%q,"object":"model","max_model_len":%d}`, name, f.MaxLen))
		}
		fmt.Fprintf(w, `{"object":"list","data":[%s]}`, strings.Join(list, ","))
	case r.Method != http.MethodPost:
		f.refuse(w, http.StatusNotFound, "Not Found")
	case f.Never || f.asked.Add(1) <= int64(f.Loading):
		f.refuse(w, http.StatusServiceUnavailable, "Loading model")
	case r.URL.Path == "/v1/embeddings" && f.Embeds:
		var req struct{ Input any }
		_ = json.NewDecoder(r.Body).Decode(&req)
		n := 1
		if list, ok := req.Input.([]any); ok {
			n = len(list)
		}
		var data []string
		for i := range n {
			data = append(data, fmt.Sprintf(`{"index":%d,"embedding":[0.5,%d]}`, i, i))
		}
		fmt.Fprintf(w, `{"object":"list","data":[%s],"usage":{"prompt_tokens":3,"total_tokens":3}}`, strings.Join(data, ","))
	case r.URL.Path == "/v1/chat/completions" && !f.Embeds:
		f.chat(w, r)
	default:
		f.refuse(w, http.StatusNotFound, "Not Found")
	}
}

func (f *fakeServer) chat(w http.ResponseWriter, r *http.Request) {
	body, err := openai.ReadBody(r.Body, 1<<20)
	if err != nil {
		f.refuse(w, http.StatusBadRequest, "%s", err)
		return
	}
	req, err := openai.DecodeChat(body)
	if err != nil {
		f.refuse(w, http.StatusBadRequest, "%s", err)
		return
	}
	if len(f.Names) > 0 && !strings.Contains(strings.Join(f.Names, " "), req.Model) {
		f.refuse(w, http.StatusNotFound, "the model %q does not exist", req.Model)
		return
	}
	if err := req.CheckAbility(nil); err != nil && !f.Ignores {
		f.refuse(w, http.StatusBadRequest, "not here: %s", err)
		return
	}
	var words []string
	prompt := 0
	for _, m := range req.Messages {
		text, _ := m.Content.PlainText()
		words = strings.Fields(text)
		prompt += len(words)
	}
	finish := openai.FinishStop
	delay, _ := time.ParseDuration(f.Delay)
	if delay > 0 {
		words = strings.Fields(strings.Repeat("on and on it goes ", 100))
	}
	if n := req.MaxOutput(); n > 0 && n < len(words) {
		words, finish = words[:n], openai.FinishLength
	}
	usage := &openai.Usage{PromptTokens: prompt, CompletionTokens: len(words), TotalTokens: prompt + len(words)}
	if !req.Stream {
		text := strings.Join(words, " ")
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(openai.ChatResponse{
			ID: "x", Object: openai.ObjectChat, Model: req.Model, Usage: usage,
			Choices: []openai.ChatChoice{{Message: openai.AnswerMessage{Role: "assistant", Content: &text}, FinishReason: finish}},
		})
		return
	}
	crash := f.Crash && f.streams.Add(1) == 2
	events := openai.NewEventWriter(w)
	if !f.Late && f.Comments {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, ": warming up\n\n")
		_ = http.NewResponseController(w).Flush()
	}
	if f.Closes {
		defer panic(http.ErrAbortHandler)
	}
	chunk := openai.ChatChunk{ID: "x", Object: openai.ObjectChatChunk, Model: req.Model}
	for i, word := range words {
		if i > 0 {
			word = " " + word
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return
		}
		if crash && i == 2 {
			os.Exit(6)
		}
		chunk.Choices = []openai.ChunkChoice{{Delta: openai.Delta{Content: &word}}}
		if events.JSON(chunk) != nil {
			return
		}
		if f.Comments {
			fmt.Fprint(w, ": ping\n\n")
		}
	}
	chunk.Choices = []openai.ChunkChoice{{FinishReason: &finish}}
	_ = events.JSON(chunk)
	if req.IncludeUsage() {
		chunk.Choices, chunk.Usage = []openai.ChunkChoice{}, usage
		_ = events.JSON(chunk)
	}
	_ = events.Done()
}
