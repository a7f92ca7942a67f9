package openai

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/shoenig/test/must"
)

// countingWriter counts writes and flushes.
type countingWriter struct {
	*httptest.ResponseRecorder
	writes, flushes int
	fail            bool
}

func (c *countingWriter) Write(b []byte) (int, error) {
	c.writes++
	if c.fail {
		return 0, errors.New("gone")
	}
	return c.ResponseRecorder.Write(b)
}
func (c *countingWriter) Flush() { c.flushes++ }

func TestEventWriter(t *testing.T) {
	t.Parallel()
	w := &countingWriter{ResponseRecorder: httptest.NewRecorder()}
	e := NewEventWriter(w)
	must.False(t, e.Started())
	must.NoError(t, e.Data([]byte(`{"a":1}`)))
	must.True(t, e.Started())
	must.NoError(t, e.JSON(map[string]int{"b": 2}))
	must.NoError(t, e.Comment("wait\nfor\rit"))
	must.NoError(t, e.Raw([]byte("data: raw\n\n")))
	must.NoError(t, e.Error(NewError(500, TypeServer, "", "", "bad")))
	must.NoError(t, e.Done())
	must.Eq(t, "data: {\"a\":1}\n\ndata: {\"b\":2}\n\n: wait for it\ndata: raw\n\n"+
		"data: {\"error\":{\"message\":\"bad\",\"type\":\"server_error\",\"param\":null,\"code\":null}}\n\ndata: [DONE]\n\n", w.Body.String())
	must.Eq(t, 6, w.writes)
	must.Eq(t, 6, w.flushes)
	must.Eq(t, "text/event-stream", w.Header().Get("Content-Type"))

	w.fail = true
	must.Error(t, e.Done())
	must.Error(t, e.JSON(func() {}))
}

func TestEventReader(t *testing.T) {
	t.Parallel()
	type ev struct{ id, name, data, raw string }
	none := "-" // no data
	for name, c := range map[string]struct {
		in   string
		want []ev
		end  error
	}{
		"empty":           {"", nil, io.EOF},
		"blank lines":     {"\n\n\r\n", nil, io.EOF},
		"two":             {"data: a\n\ndata: b\n\n", []ev{{"", "", "a", "data: a\n\n"}, {"", "", "b", "data: b\n\n"}}, io.EOF},
		"crlf":            {"data: a\r\n\r\n", []ev{{"", "", "a", "data: a\r\n\r\n"}}, io.EOF},
		"several lines":   {"data: a\ndata:b\ndata\n\n", []ev{{"", "", "a\nb\n", "data: a\ndata:b\ndata\n\n"}}, io.EOF},
		"one space goes":  {"data:  a\n\n", []ev{{"", "", " a", "data:  a\n\n"}}, io.EOF},
		"comment":         {": hello\n\n", []ev{{"", "", none, ": hello\n"}}, io.EOF},
		"comment alone":   {": hello\ndata: a\n\n", []ev{{"", "", none, ": hello\n"}, {"", "", "a", "data: a\n\n"}}, io.EOF},
		"comment inside":  {"data: a\n: hello\n\n", []ev{{"", "", "a", "data: a\n: hello\n\n"}}, io.EOF},
		"id and name":     {"id: 7\nevent: job\ndata: {}\nretry: 5\nother: x\n\n", []ev{{"7", "job", "{}", "id: 7\nevent: job\ndata: {}\nretry: 5\nother: x\n\n"}}, io.EOF},
		"empty data":      {"data:\n\n", []ev{{"", "", "", "data:\n\n"}}, io.EOF},
		"byte order mark": {"\ufeffdata: a\n\n", []ev{{"", "", "a", "\ufeffdata: a\n\n"}}, io.EOF},
		"cut":             {"data: a\n\ndata: b\n", []ev{{"", "", "a", "data: a\n\n"}}, io.ErrUnexpectedEOF},
		"cut in a line":   {"data: [DON", nil, io.ErrUnexpectedEOF},
		"long line":       {"data: " + strings.Repeat("x", MaxLineBytes) + "\n\n", nil, ErrEventTooLarge},
		"long event":      {strings.Repeat("data: "+strings.Repeat("x", 1000)+"\n", 5000), nil, ErrEventTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, src := range []io.Reader{strings.NewReader(c.in), iotest.OneByteReader(strings.NewReader(c.in))} {
				r := NewEventReader(src)
				var got []ev
				for {
					e, err := r.Next()
					if err != nil {
						must.ErrorIs(t, err, c.end)
						break
					}
					data := string(e.Data)
					if e.Data == nil {
						data = none
					}
					got = append(got, ev{e.ID, e.Name, data, string(e.Raw)})
				}
				must.Eq(t, c.want, got)
			}
		})
	}
	e, err := NewEventReader(strings.NewReader("data: [DONE]\n\n")).Next()
	must.NoError(t, err)
	must.True(t, e.IsDone())
}

// For any input, the raw bytes of the events are the stream's bytes, and memory is bounded.
func FuzzEventReader(f *testing.F) {
	for _, s := range []string{"data: a\n\n", ":\r\n\r\n", "\ufeffid: 1\ndata\n\n", "data:a\ndata:b\n\nx", "\n\n\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewEventReader(bytes.NewReader(in))
		rest := in
		for {
			e, err := r.Next()
			if err != nil {
				return
			}
			i := bytes.Index(rest, e.Raw)
			if i < 0 || strings.Trim(string(rest[:i]), "\r\n") != "" && !bytes.HasPrefix(rest, []byte("\ufeff")) {
				t.Fatalf("%q is not what came: %q", e.Raw, rest)
			}
			rest = rest[i+len(e.Raw):]
		}
	})
}

func TestErrors(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	w.Header().Set("Retry-After", "3")
	WriteError(w, 0, Invalid("top_p", "too %s", "big"))
	must.Eq(t, http.StatusBadRequest, w.Code)
	must.Eq(t, `{"error":{"message":"too big","type":"invalid_request_error","param":"top_p","code":null}}`+"\n", w.Body.String())
	must.Eq(t, "3", w.Header().Get("Retry-After"))
	w = httptest.NewRecorder()
	WriteError(w, 503, NewError(500, TypeServer, "", "x", "y"))
	must.Eq(t, 503, w.Code)

	for name, c := range map[string]struct {
		status    int
		body      string
		message   string
		typ, code string
	}{
		"openai":         {429, `{"error":{"message":"m","type":"t","param":null,"code":"c"}}`, "m", "t", "c"},
		"number as code": {400, `{"error":{"code":400,"message":"m","type":"t"}}`, "m", "t", "400"},
		"text as error":  {500, `{"error":"m"}`, "m", TypeServer, ""},
		"no json":        {502, "<html>bad gateway</html>", "<html>bad gateway</html>", TypeServer, ""},
		"another object": {404, `{"detail":"x"}`, `{"detail":"x"}`, TypeInvalidRequest, ""},
		"nothing":        {503, "", "the server answered 503 Service Unavailable without a message", TypeServer, ""},
		"null":           {500, `{"error":null}`, `{"error":null}`, TypeServer, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := DecodeError(c.status, []byte(c.body))
			must.Eq(t, c.status, e.Status)
			must.Eq(t, c.message, e.Message)
			must.Eq(t, c.typ, e.Type)
			if c.code == "" {
				must.Nil(t, e.Code)
			} else {
				must.Eq(t, c.code, *e.Code)
			}
		})
	}
	must.LessEq(t, 2000, len(DecodeError(500, bytes.Repeat([]byte("x"), 1<<20)).Message))

	must.Nil(t, ErrorIn([]byte(`{"id":"x","error":null}`)))
	must.Nil(t, ErrorIn([]byte(`{"choices":[{"delta":{"content":"\"error\""}}]}`)))
	must.Nil(t, ErrorIn(nil))
	must.Eq(t, "m", ErrorIn([]byte(` { "error" : {"message":"m"}}`)).Message)
	must.Eq(t, "top_p: bad", (&Error{Message: "bad", Param: new("top_p")}).Error())
	must.Eq(t, "top_p is bad", (&Error{Message: "top_p is bad", Param: new("top_p")}).Error())
}

func TestChunks(t *testing.T) { // not parallel: it counts allocations
	texts := []string{"", "a", "\"\\/\n\r\t\x00\x1f\x7f", "東京 🐝", "\u2028\u2029", "<script>&"}
	chat, legacy := NewChatChunks(`id"1`, 5, "m/1"), NewCompletionChunks("id", 5, "m")
	for _, text := range texts {
		var c ChatChunk
		must.NoError(t, json.Unmarshal(chat.Text(text), &c))
		must.Eq(t, ChatChunk{ID: `id"1`, Object: ObjectChatChunk, Created: 5, Model: "m/1", Choices: []ChunkChoice{{Delta: Delta{Content: &text}}}}, c)
		var l CompletionResponse
		must.NoError(t, json.Unmarshal(legacy.Text(text), &l))
		must.Eq(t, CompletionResponse{ID: "id", Object: ObjectCompletion, Created: 5, Model: "m", Choices: []CompletionChoice{{Text: text}}}, l)
	}
	var c ChatChunk
	must.NoError(t, json.Unmarshal(chat.Choice(12).Text("x"), &c))
	must.Eq(t, []ChunkChoice{{Index: 12, Delta: Delta{Content: new("x")}}}, c.Choices)
	var l CompletionResponse
	must.NoError(t, json.Unmarshal(legacy.Choice(3).Text("x"), &l))
	must.Eq(t, []CompletionChoice{{Index: 3, Text: "x"}}, l.Choices)
	must.Eq(t, 0, testing.AllocsPerRun(100, func() { chat.Text("some text") }))
}

func FuzzAppendString(f *testing.F) {
	f.Add("a\"\\\x00\xff東\u2028")
	f.Fuzz(func(t *testing.T, s string) {
		b := AppendString(nil, s)
		var got string
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if want := string([]rune(s)); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
		if bytes.ContainsAny(b, "\n\r") {
			t.Fatal("a line break would end the event")
		}
	})
}

func BenchmarkChunk(b *testing.B) {
	c := NewChatChunks("chatcmpl-0123456789abcdef", 1, "rbee-tiny")
	b.ReportAllocs()
	for b.Loop() {
		c.Text(" token")
	}
}

func BenchmarkEventReader(b *testing.B) {
	one := append(append([]byte("data: "), NewChatChunks("chatcmpl-0123456789abcdef", 1, "rbee-tiny").Text(" token")...), "\n\n"...)
	stream := bytes.Repeat(one, 100)
	b.ReportAllocs()
	for b.Loop() {
		r := NewEventReader(bytes.NewReader(stream))
		for {
			if _, err := r.Next(); err != nil {
				break
			}
		}
	}
}
