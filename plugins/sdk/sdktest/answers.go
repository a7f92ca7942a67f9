package sdktest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

func (s *workerSuite) body(stream bool, prompt string, maxTokens int) string {
	b, err := json.Marshal(map[string]any{
		"model": modelID, "stream": stream, "max_tokens": maxTokens, "temperature": 0,
		"messages":       []any{map[string]any{"role": "user", "content": prompt}},
		"stream_options": map[string]any{"include_usage": true},
	})
	if err != nil {
		panic(err) // strings, numbers and booleans always marshal
	}
	if !stream {
		return strings.Replace(string(b), `"stream_options":{"include_usage":true},`, "", 1)
	}
	return string(b)
}

func post(ctx context.Context, c *http.Client, path, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://worker"+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	return c.Do(req)
}

func (s *workerSuite) answers(t *testing.T) {
	w, c := s.started(t, s.o.Config)
	whole, err := s.ask(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("stream", func(t *testing.T) {
		resp, err := post(t.Context(), c, "/v1/chat/completions", s.body(true, s.o.Prompt, 16))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if ct := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(ct, "text/event-stream") {
			t.Fatalf("status %s, content type %q", resp.Status, ct)
		}
		text, usage := readStream(t, resp.Body)
		if text != whole {
			t.Errorf("streamed at temperature 0 the answer is %q, and %q otherwise", text, whole)
		}
		if usage == nil || usage.PromptTokens <= 0 || usage.CompletionTokens <= 0 || usage.TotalTokens != usage.PromptTokens+usage.CompletionTokens {
			t.Errorf("usage is %+v", usage)
		}
	})
	t.Run("errors", func(t *testing.T) {
		for _, tc := range []struct {
			path, body string
			status     int
		}{
			{"/v1/chat/completions", `{"messages":`, http.StatusBadRequest},
			{"/v1/chat/completions", `{"model":"` + modelID + `","messages":[]}`, http.StatusBadRequest},
			{"/v1/no/such/route", `{}`, http.StatusNotFound},
		} {
			resp, err := post(t.Context(), c, tc.path, tc.body)
			if err != nil {
				t.Fatal(err)
			}
			var envelope struct {
				Error *openai.Error `json:"error"`
			}
			err = json.NewDecoder(resp.Body).Decode(&envelope)
			_ = resp.Body.Close()
			if resp.StatusCode != tc.status || err != nil || envelope.Error == nil || envelope.Error.Message == "" {
				t.Errorf("POST %s with %s: status %d (want %d), envelope %+v (%v)", tc.path, tc.body, resp.StatusCode, tc.status, envelope.Error, err)
			}
		}
	})
	eventually(t, time.Second, func() error {
		st, err := w.Client.Status(t.Context())
		if err == nil && (st.Active != 0 || st.TokensTotal <= 0) {
			err = fmt.Errorf("after the answers the status is %+v", st)
		}
		return err
	})
}

// ask gets a whole answer of a few tokens.
func (s *workerSuite) ask(ctx context.Context, c *http.Client) (string, error) {
	resp, err := post(ctx, c, "/v1/chat/completions", s.body(false, s.o.Prompt, 16))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("chat: %s: %s", resp.Status, body)
	}
	var r openai.ChatResponse
	if err := json.Unmarshal(body, &r); err != nil {
		return "", fmt.Errorf("chat: %w: %s", err, body)
	}
	if r.Object != openai.ObjectChat || len(r.Choices) != 1 || r.Choices[0].Message.Content == nil || r.Choices[0].FinishReason == "" || r.Usage == nil ||
		r.Usage.CompletionTokens <= 0 || r.Usage.CompletionTokens > 16 {
		return "", fmt.Errorf("chat: incomplete answer: %s", body)
	}
	return *r.Choices[0].Message.Content, nil
}

func readStream(t *testing.T, r io.Reader) (string, *openai.Usage) {
	t.Helper()
	var text strings.Builder
	var usage *openai.Usage
	var id, finish string
	events := openai.NewEventReader(r)
	for {
		e, err := events.Next()
		if err != nil {
			t.Fatalf("the stream ends without [DONE]: %v", err)
		}
		if e.Data == nil {
			continue
		}
		if e.IsDone() {
			break
		}
		var c openai.ChatChunk
		if err := json.Unmarshal(e.Data, &c); err != nil || c.Object != openai.ObjectChatChunk {
			t.Fatalf("chunk %s: %v", e.Data, err)
		}
		if id == "" {
			id = c.ID
		}
		if c.ID != id || id == "" {
			t.Errorf("the id changes from %q to %q", id, c.ID)
		}
		for _, x := range c.Choices {
			if x.Delta.Content != nil {
				text.WriteString(*x.Delta.Content)
			}
			if x.FinishReason != nil {
				finish = *x.FinishReason
			}
		}
		if c.Usage != nil {
			usage = c.Usage
		}
	}
	if finish == "" {
		t.Error("no chunk has a finish_reason")
	}
	return text.String(), usage
}

func (s *workerSuite) crowd(t *testing.T) {
	_, c := s.started(t, s.o.Config)
	alone, err := s.ask(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range s.o.Slots + 2 {
		wg.Go(func() {
			if got, err := s.ask(t.Context(), c); err != nil || got != alone {
				t.Errorf("in a crowd the answer is %q (%v), alone it was %q", got, err, alone)
			}
		})
	}
	wg.Wait()
}

// long starts an answer and returns when its first text is there.
func (s *workerSuite) long(ctx context.Context, t *testing.T, c *http.Client) io.Reader {
	t.Helper()
	resp, err := post(ctx, c, "/v1/chat/completions", s.body(true, s.o.LongPrompt, s.o.LongTokens))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	buf := make([]byte, 1)
	if _, err := resp.Body.Read(buf); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("no first byte: %s %v", resp.Status, err)
	}
	return resp.Body
}

func active(ctx context.Context, w WorkerInstance, want int) error {
	st, err := w.Client.Status(ctx)
	if err != nil {
		return err
	}
	if st.Active != want {
		return fmt.Errorf("%d requests are active, want %d", st.Active, want)
	}
	return nil
}

func (s *workerSuite) cancel(t *testing.T) {
	w, c := s.started(t, s.o.LongConfig)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.long(ctx, t, c)
	if err := active(t.Context(), w, 1); err != nil {
		if s.o.AnyLength {
			t.Skipf("the answer was too short to be cut in the middle: %v", err)
		}
		t.Fatalf("in the middle of an answer: %v (set LongConfig, LongPrompt or LongTokens so that answers take a second or more)", err)
	}
	cancel()
	eventually(t, time.Second, func() error { return active(t.Context(), w, 0) })
	after, err := post(t.Context(), c, "/v1/chat/completions", s.body(false, s.o.Prompt, 1))
	if err != nil {
		t.Fatalf("the request after a cancelled one: %v", err)
	}
	_ = after.Body.Close()
	if after.StatusCode != http.StatusOK {
		t.Errorf("the request after a cancelled one: %s", after.Status)
	}
}

func (s *workerSuite) drain(t *testing.T) {
	w, c := s.started(t, s.o.LongConfig)
	answer := s.long(t.Context(), t, c)
	drained := make(chan error, 1)
	go func() { drained <- w.Client.Drain(t.Context()) }()
	eventually(t, patience, func() error {
		st, err := w.Client.Status(t.Context())
		if err == nil && st.State != worker.StateDraining {
			err = fmt.Errorf("the state is %s, want draining", st.State)
		}
		return err
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	refused, err := post(ctx, c, "/v1/chat/completions", s.body(false, s.o.Prompt, 1))
	if err != nil {
		t.Fatalf("a new request while it drains: %v, want 503 at once", err)
	}
	_ = refused.Body.Close()
	if refused.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a new request while it drains: %s, want 503", refused.Status)
	}
	select {
	case err := <-drained:
		if rest, readErr := io.ReadAll(answer); s.o.AnyLength && err == nil && readErr == nil && bytes.Contains(rest, []byte("[DONE]")) {
			t.Skip("the answer was too short to be waited for")
		}
		t.Fatalf("Drain returned (%v) while a request ran", err)
	default:
	}
	rest, err := io.ReadAll(answer)
	if err != nil || !bytes.Contains(rest, []byte("[DONE]")) {
		t.Errorf("the running request was cut: %v", err)
	}
	if err := within(t, patience, "Drain after the last request", func() error { return <-drained }); err != nil {
		t.Errorf("Drain: %v", err)
	}
}
