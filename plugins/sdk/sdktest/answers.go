package sdktest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

const (
	chatPath       = "/v1/chat/completions"
	completionPath = "/v1/completions"
	answerTokens   = 16
)

// fields are the members of a request's body.
type fields map[string]any

// body returns a chat request; more holds its further fields.
func (s *workerSuite) body(stream bool, prompt string, maxTokens int, more fields) string {
	f := fields{
		"model": modelID, "stream": stream, "max_tokens": maxTokens, "temperature": 0,
		"messages": []any{map[string]any{"role": "user", "content": prompt}},
	}
	if stream {
		f["stream_options"] = map[string]any{"include_usage": true}
	}
	maps.Copy(f, more)
	return jsonOf(f)
}

func jsonOf(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // texts, numbers and lists of them always marshal
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

// answerTo posts a request and reads the response.
func answerTo(ctx context.Context, c *http.Client, path, body string) (status int, answer []byte, err error) {
	resp, err := post(ctx, c, path, body)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// ask requests a whole answer of a few tokens.
func (s *workerSuite) ask(ctx context.Context, c *http.Client) (string, error) {
	r, err := s.chat(ctx, c, s.o.Prompt, answerTokens)
	if err != nil {
		return "", err
	}
	return *r.Choices[0].Message.Content, nil
}

// chat requests a whole answer.
func (s *workerSuite) chat(ctx context.Context, c *http.Client, prompt string, maxTokens int) (*openai.ChatResponse, error) {
	status, body, err := answerTo(ctx, c, chatPath, s.body(false, prompt, maxTokens, nil))
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("chat: status %d: %s", status, body)
	}
	var r openai.ChatResponse
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("chat: %w: %s", err, body)
	}
	if r.Object != openai.ObjectChat || len(r.Choices) != 1 || r.Choices[0].Message.Content == nil || r.Choices[0].FinishReason == "" {
		return nil, fmt.Errorf("chat: incomplete answer: %s", body)
	}
	return &r, nil
}

func (s *workerSuite) answers(t *testing.T) {
	w, c := s.started(t, s.o.Config)
	s.needsChat(t, w)
	whole, err := s.chat(t.Context(), c, s.o.Prompt, answerTokens)
	if err != nil {
		brokenNow(t, "chat", "%v", err)
	}
	var streamed *openai.Usage
	t.Run("stream", func(t *testing.T) {
		text, usage := s.stream(t, c, s.o.Prompt)
		if want := *whole.Choices[0].Message.Content; text != want {
			broken(t, "chat-stream", "streamed at temperature 0 the answer is %q, and %q otherwise", text, want)
		}
		streamed = usage
	})
	if !t.Failed() { // otherwise there is nothing to compare with
		t.Run("usage", func(t *testing.T) { s.usage(t, c, whole, streamed) })
		t.Run("utf-8", func(t *testing.T) { s.utf8(t, c) })
	}
	t.Run("errors", func(t *testing.T) {
		for _, tc := range []struct {
			path, body string
			status     int
		}{
			{chatPath, `{"messages":`, http.StatusBadRequest},
			{chatPath, `{"model":"` + modelID + `","messages":[]}`, http.StatusBadRequest},
			{"/v1/no/such/route", `{}`, http.StatusNotFound},
		} {
			status, body, err := answerTo(t.Context(), c, tc.path, tc.body)
			if e := errorIn(body); err != nil || status != tc.status || e == nil {
				broken(t, "errors", "POST %s with %s: status %d (want %d), envelope %+v (%v)", tc.path, tc.body, status, tc.status, e, err)
			}
		}
	})
	eventually(t, "status-load", time.Second, func() error {
		st, err := w.Client.Status(t.Context())
		if err == nil && (st.Active != 0 || st.TokensTotal <= 0) {
			err = fmt.Errorf("after the answers the status is %+v", st)
		}
		return err
	})
}

// errorIn returns the error in OpenAI's envelope; nil: there is none.
func errorIn(body []byte) *openai.Error {
	var envelope struct {
		Error *openai.Error `json:"error"`
	}
	if err := json.Unmarshal(body, &envelope); err == nil && envelope.Error != nil && envelope.Error.Message != "" {
		return envelope.Error
	}
	return nil
}

// stream requests a streamed answer of a few tokens.
func (s *workerSuite) stream(t *testing.T, c *http.Client, prompt string) (string, *openai.Usage) {
	t.Helper()
	resp, err := post(t.Context(), c, chatPath, s.body(true, prompt, answerTokens, nil))
	if err != nil {
		brokenNow(t, "chat-stream", "%v", err)
	}
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(ct, "text/event-stream") {
		brokenNow(t, "chat-stream", "status %s, content type %q", resp.Status, ct)
	}
	return readStream(t, resp.Body)
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
			brokenNow(t, "chat-stream", "the stream ends without [DONE]: %v", err)
		}
		if e.Data == nil {
			continue
		}
		if e.IsDone() {
			break
		}
		if !utf8.Valid(e.Data) {
			broken(t, "utf8", "an event has a cut character: %q", e.Data)
		}
		var c openai.ChatChunk
		if err := json.Unmarshal(e.Data, &c); err != nil || c.Object != openai.ObjectChatChunk {
			brokenNow(t, "chat-stream", "chunk %s: %v", e.Data, err)
		}
		if id == "" {
			id = c.ID
		}
		if c.ID != id || id == "" {
			broken(t, "chat-stream", "the id changes from %q to %q", id, c.ID)
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
		broken(t, "chat-stream", "no chunk has a finish_reason")
	}
	return text.String(), usage
}

// usage checks the counts as far as possible without the model's vocabulary.
func (s *workerSuite) usage(t *testing.T, c *http.Client, whole *openai.ChatResponse, streamed *openai.Usage) {
	if whole.Usage == nil || streamed == nil {
		brokenNow(t, "usage", "the whole answer has usage %+v, and the stream, which asked for it, %+v", whole.Usage, streamed)
	}
	u := *whole.Usage
	if u.PromptTokens <= 0 || u.CompletionTokens <= 0 || u.TotalTokens != u.PromptTokens+u.CompletionTokens {
		broken(t, "usage", "usage is %+v", u)
	}
	if streamed.PromptTokens != u.PromptTokens || streamed.CompletionTokens != u.CompletionTokens || streamed.TotalTokens != u.TotalTokens {
		broken(t, "usage", "the usage of a stream is %+v, and %+v for the same answer in one piece", *streamed, u)
	}
	for _, limit := range []int{1, 3} {
		r, err := s.chat(t.Context(), c, s.o.Prompt, limit)
		switch {
		case err != nil:
			brokenNow(t, "chat", "with max_tokens %d: %v", limit, err)
		case r.Usage == nil || r.Usage.CompletionTokens > limit:
			broken(t, "usage", "with max_tokens %d the usage is %+v", limit, r.Usage)
		case r.Choices[0].FinishReason == openai.FinishLength && r.Usage.CompletionTokens != limit:
			broken(t, "usage", "the answer was ended by max_tokens %d and the usage says %d", limit, r.Usage.CompletionTokens)
		}
	}
	longer, err := s.chat(t.Context(), c, s.o.Prompt+" "+s.o.Prompt, 1)
	if err != nil {
		brokenNow(t, "chat", "%v", err)
	}
	if longer.Usage == nil || longer.Usage.PromptTokens <= u.PromptTokens {
		broken(t, "usage", "twice the prompt has usage %+v, once it has %+v", longer.Usage, u)
	}
}

// utf8 prompts for an answer that is likely to have multi-byte characters.
func (s *workerSuite) utf8(t *testing.T, c *http.Client) {
	const prompt = "Say these words again: Zürich naïve 東京 🐝🐝 ñandú"
	whole, err := s.chat(t.Context(), c, prompt, answerTokens)
	if err != nil {
		brokenNow(t, "chat", "%v", err)
	}
	text, _ := s.stream(t, c, prompt)
	want := *whole.Choices[0].Message.Content
	if strings.ContainsRune(text, utf8.RuneError) && !strings.ContainsRune(want, utf8.RuneError) {
		broken(t, "utf8", "streamed the answer is %q, and %q otherwise", text, want)
	}
}

func (s *workerSuite) crowd(t *testing.T) {
	w, c := s.started(t, s.o.Config)
	s.needsChat(t, w)
	alone, err := s.ask(t.Context(), c)
	if err != nil {
		brokenNow(t, "chat", "%v", err)
	}
	var wg sync.WaitGroup
	for range s.o.Slots + 2 {
		wg.Go(func() {
			if got, err := s.ask(t.Context(), c); err != nil || got != alone {
				broken(t, "queue", "in a crowd the answer is %q (%v), alone it was %q", got, err, alone)
			}
		})
	}
	wg.Wait()
}

// slotMargin is how long the other requests must keep running, after the request beyond the slots,
// for it to count as served alongside them. It covers the delay of the client's own reading.
const slotMargin = 250 * time.Millisecond

// slotLimit sends one more streamed request than there are slots: its text may arrive only after
// one of the others has ended.
func (s *workerSuite) slotLimit(t *testing.T) {
	w, c := s.started(t, s.o.LongConfig)
	s.needsChat(t, w)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	ended := make(chan struct{}, s.o.Slots)
	for range s.o.Slots {
		first := make(chan struct{})
		wg.Go(func() {
			s.watch(ctx, c, first)
			ended <- struct{}{}
		})
		select {
		case <-first:
		case <-time.After(s.o.StartTimeout):
			brokenNow(t, "chat-stream", "no text within %s", s.o.StartTimeout)
		}
	}
	extra := make(chan struct{})
	wg.Go(func() { s.watch(ctx, c, extra) })
	for {
		st, err := w.Client.Status(t.Context())
		if err != nil {
			brokenNow(t, "status", "%v", err)
		}
		if st.Active > s.o.Slots {
			brokenNow(t, "slot-limit", "%d requests are active in %d slots", st.Active, s.o.Slots)
		}
		select {
		case <-ended:
			return
		case <-extra:
			select {
			case <-ended:
			case <-time.After(slotMargin):
				broken(t, "slot-limit", "%d requests are answered at once in %d slots", s.o.Slots+1, s.o.Slots)
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// watch reads a long stream to its end. It closes first at its first text, or at its end if there
// is none.
func (s *workerSuite) watch(ctx context.Context, c *http.Client, first chan<- struct{}) {
	var once sync.Once
	defer once.Do(func() { close(first) })
	resp, err := post(ctx, c, chatPath, s.body(true, s.o.LongPrompt, s.o.LongTokens, nil))
	if err != nil {
		return
	}
	defer resp.Body.Close()
	for events := openai.NewEventReader(resp.Body); ; {
		e, err := events.Next()
		if err != nil || e.IsDone() {
			return
		}
		var chunk openai.ChatChunk
		if e.Data == nil || json.Unmarshal(e.Data, &chunk) != nil {
			continue
		}
		for _, x := range chunk.Choices {
			if x.Delta.Content != nil && *x.Delta.Content != "" {
				once.Do(func() { close(first) })
			}
		}
	}
}

// long starts a long answer and returns once its first byte has arrived.
func (s *workerSuite) long(ctx context.Context, t *testing.T, c *http.Client) io.Reader {
	t.Helper()
	resp, err := post(ctx, c, chatPath, s.body(true, s.o.LongPrompt, s.o.LongTokens, nil))
	if err != nil {
		brokenNow(t, "chat-stream", "%v", err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	buf := make([]byte, 1)
	if _, err := resp.Body.Read(buf); err != nil || resp.StatusCode != http.StatusOK {
		brokenNow(t, "chat-stream", "no first byte: %s %v", resp.Status, err)
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

// tooShort skips the test if answers may end before they can be cut.
func (s *workerSuite) tooShort(t *testing.T, err error) {
	t.Helper()
	if s.o.AnyLength {
		t.Skipf("the answer was too short to be cut in the middle: %v", err)
	}
	brokenNow(t, "status-load", "in the middle of an answer: %v (set LongConfig, LongPrompt or LongTokens so that answers take a second or more)", err)
}

func (s *workerSuite) cancel(t *testing.T) {
	w, c := s.started(t, s.o.LongConfig)
	s.needsChat(t, w)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.long(ctx, t, c)
	if err := active(t.Context(), w, 1); err != nil {
		s.tooShort(t, err)
	}
	cancel()
	eventually(t, "cancel", time.Second, func() error { return active(t.Context(), w, 0) })
	status, _, err := answerTo(t.Context(), c, chatPath, s.body(false, s.o.Prompt, 1, nil))
	if err != nil || status != http.StatusOK {
		broken(t, "cancel", "the request after a cancelled one: status %d (%v)", status, err)
	}
}

// cancelQueued cancels a request that is queued for a slot.
func (s *workerSuite) cancelQueued(t *testing.T) {
	w, c := s.started(t, s.o.LongConfig)
	s.needsChat(t, w)
	for range s.o.Slots {
		s.long(t.Context(), t, c)
	}
	if err := active(t.Context(), w, s.o.Slots); err != nil {
		s.tooShort(t, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// runs until it is cancelled
		_, _, _ = answerTo(ctx, c, chatPath, s.body(true, s.o.LongPrompt, s.o.LongTokens, nil))
	}()
	deadline := time.Now().Add(patience)
	for {
		st, err := w.Client.Status(t.Context())
		if err != nil {
			brokenNow(t, "status", "%v", err)
		}
		if st.Queued == 1 {
			break
		}
		if st.Active > s.o.Slots {
			t.Skip("it does not wait: see slot-limit")
		}
		if st.Active < s.o.Slots {
			s.tooShort(t, fmt.Errorf("%d requests are active, want %d", st.Active, s.o.Slots))
		}
		if time.Now().After(deadline) {
			brokenNow(t, "status-load", "a request waits for a slot, and the status is %+v", st)
		}
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	<-ended
	eventually(t, "cancel-queued", time.Second, func() error {
		st, err := w.Client.Status(t.Context())
		if err == nil && st.Queued != 0 {
			err = errors.New("the request is still queued")
		}
		return err
	})
}

func (s *workerSuite) drain(t *testing.T) {
	w, c := s.started(t, s.o.LongConfig)
	s.needsChat(t, w)
	answer := s.long(t.Context(), t, c)
	drained := make(chan error, 1)
	go func() { drained <- w.Client.Drain(t.Context()) }()
	eventually(t, "drain", patience, func() error {
		st, err := w.Client.Status(t.Context())
		if err == nil && st.State != worker.StateDraining {
			err = fmt.Errorf("the state is %s, want draining", st.State)
		}
		return err
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	status, _, err := answerTo(ctx, c, chatPath, s.body(false, s.o.Prompt, 1, nil))
	if err != nil {
		brokenNow(t, "drain", "a new request while it drains: %v, want 503 at once", err)
	}
	if status != http.StatusServiceUnavailable {
		broken(t, "drain", "a new request while it drains: status %d, want 503", status)
	}
	select {
	case err := <-drained:
		if rest, readErr := io.ReadAll(answer); s.o.AnyLength && err == nil && readErr == nil && bytes.Contains(rest, []byte("[DONE]")) {
			t.Skip("the answer was too short to be waited for")
		}
		brokenNow(t, "drain", "Drain returned (%v) while a request ran", err)
	default:
	}
	rest, err := io.ReadAll(answer)
	if err != nil || !bytes.Contains(rest, []byte("[DONE]")) {
		broken(t, "drain", "the running request was cut: %v", err)
	}
	if err := within(t, "drain", patience, "Drain after the last request", func() error { return <-drained }); err != nil {
		broken(t, "drain", "Drain: %v", err)
	}
}
