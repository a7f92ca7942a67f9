package gateway

import (
	"bytes"
	"context"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
)

// makeForm returns a form with fields, alternating names and texts, and a file.
func makeForm(t *testing.T, fields ...string) (contentType string, body []byte) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for i := 0; i < len(fields); i += 2 {
		must.NoError(t, w.WriteField(fields[i], fields[i+1]))
	}
	file, err := w.CreatePart(textproto.MIMEHeader{"Content-Disposition": {`form-data; name="file"; filename="a.wav"`}, "Content-Type": {"audio/wav"}})
	must.NoError(t, err)
	_, err = file.Write([]byte("RIFF\x00\xff"))
	must.NoError(t, err)
	must.NoError(t, w.Close())
	return w.FormDataContentType(), b.Bytes()
}

// Audio, images and moderation pass through as bytes, to workers that support them.
func TestMediaSDK(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.serve("w1", func(w http.ResponseWriter, q *http.Request) {
		switch q.URL.Path {
		case "/v1/audio/speech":
			w.Header().Set("Content-Type", "audio/mpeg")
			_, _ = w.Write([]byte{0xff, 0xfb, 0})
		case "/v1/audio/transcriptions", "/v1/audio/translations":
			file, head, err := q.FormFile("file")
			if err != nil || q.FormValue("model") != "tiny" {
				http.Error(w, "no file", http.StatusBadRequest)
				return
			}
			sound, _ := io.ReadAll(file)
			answerJSON(200, `{"text":"`+head.Filename+" "+strings.ToUpper(string(sound[:4]))+`"}`)(w, q)
		case "/v1/moderations":
			answerJSON(200, `{"id":"m","model":"tiny","results":[{"flagged":true}]}`)(w, q)
		case "/v1/images/generations":
			answerJSON(200, `{"created":1,"data":[{"b64_json":"AA=="}]}`)(w, q)
		default:
			http.Error(w, "no", http.StatusNotFound)
		}
	})
	c := sdk(r)
	sound := openai.File(strings.NewReader("RIFFxx"), "a.wav", "audio/wav")
	text, err := c.Audio.Transcriptions.New(t.Context(), openai.AudioTranscriptionNewParams{Model: "tiny", File: sound})
	must.NoError(t, err)
	must.Eq(t, "a.wav RIFF", text.Text)
	translated, err := c.Audio.Translations.New(t.Context(), openai.AudioTranslationNewParams{Model: "tiny", File: openai.File(strings.NewReader("RIFFxx"), "b.wav", "audio/wav")}) //nolint:staticcheck // the SDK calls it deprecated, clients go on using it
	must.NoError(t, err)
	must.Eq(t, "b.wav RIFF", translated.Text)
	speech, err := c.Audio.Speech.New(t.Context(), openai.AudioSpeechNewParams{Model: "tiny", Input: "hi", Voice: openai.AudioSpeechNewParamsVoiceUnion{OfString: openai.String("alloy")}})
	must.NoError(t, err)
	must.Eq(t, "audio/mpeg", speech.Header.Get("Content-Type"))
	heard, err := io.ReadAll(speech.Body)
	must.NoError(t, err)
	must.NoError(t, speech.Body.Close())
	must.Eq(t, []byte{0xff, 0xfb, 0}, heard)
	judged, err := c.Moderations.New(t.Context(), openai.ModerationNewParams{Model: "tiny", Input: openai.ModerationNewParamsInputUnion{OfString: openai.String("a")}})
	must.NoError(t, err)
	must.True(t, judged.Results[0].Flagged)
	drawn, err := c.Images.Generate(t.Context(), openai.ImageGenerateParams{Model: "tiny", Prompt: "a bee"})
	must.NoError(t, err)
	must.Eq(t, "AA==", drawn.Data[0].B64JSON)
}

// A form passes through byte for byte; an ambiguous one is refused before any worker sees it.
func TestMediaForms(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rigOptions) { o.MaxFormBytes = 20000 })
	asked := 0
	var got []byte
	var typ string
	r.serve("w1", func(w http.ResponseWriter, q *http.Request) {
		asked++
		got, _ = io.ReadAll(q.Body)
		typ = q.Header.Get("Content-Type")
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, "some text")
	})
	post := func(contentType string, body []byte) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/audio/transcriptions", bytes.NewReader(body))
		must.NoError(t, err)
		req.Header.Set("Content-Type", contentType)
		resp, answer, err := r.do(req)
		must.NoError(t, err)
		return resp.StatusCode, answer
	}
	contentType, body := makeForm(t, "model", "tiny", "response_format", "text")
	status, answer := post(contentType, body)
	must.Eq(t, 200, status, must.Sprint(answer))
	must.Eq(t, "some text", answer)
	must.Eq(t, body, got)
	must.Eq(t, contentType, typ)

	twice, bodyTwice := makeForm(t, "model", "tiny", "model", "large")
	none, bodyNone := makeForm(t, "language", "de")
	stream, bodyStream := makeForm(t, "model", "tiny", "stream", "true")
	long, bodyLong := makeForm(t, "model", strings.Repeat("a", 600))
	control, bodyControl := makeForm(t, "model", "tiny\x00")
	empty, bodyEmpty := makeForm(t, "model", "")
	many := []string{"model", "tiny"}
	for range maxFormParts {
		many = append(many, "a", "")
	}
	parts, bodyParts := makeForm(t, many...)
	big, bodyBig := makeForm(t, "model", "tiny", "prompt", strings.Repeat("a", 20000))
	unknown, bodyUnknown := makeForm(t, "model", "nobody")
	for name, c := range map[string]struct {
		contentType string
		body        []byte
		status      int
		says        string
	}{
		"JSON":          {"application/json", []byte(`{"model":"tiny"}`), 415, "multipart/form-data"},
		"no boundary":   {"multipart/form-data", body, 415, "multipart/form-data"},
		"cut":           {contentType, body[:len(body)-100], 400, "whole form"},
		"model twice":   {twice, bodyTwice, 400, "twice"},
		"no model":      {none, bodyNone, 400, "model is missing"},
		"stream":        {stream, bodyStream, 400, "stream"},
		"long model":    {long, bodyLong, 400, "not a name"},
		"controls":      {control, bodyControl, 400, "not a name"},
		"empty model":   {empty, bodyEmpty, 400, "not a name"},
		"many parts":    {parts, bodyParts, 400, "more than 64 parts"},
		"too large":     {big, bodyBig, 413, "larger"},
		"unknown model": {unknown, bodyUnknown, 404, "model_not_found"},
	} {
		status, answer := post(c.contentType, c.body)
		must.Eq(t, c.status, status, must.Sprint(name, answer))
		must.StrContains(t, answer, c.says, must.Sprint(name))
	}
	must.Eq(t, 1, asked)
}

// A request that no worker of a model can serve gets 501, and so does a realtime session, whatever
// the model.
func TestMediaRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rigOptions) { o.inf.Router = unable{} })
	for _, path := range inference.MediaPaths() {
		contentType, body := makeForm(t, "model", "tiny")
		if m, _ := inference.MediaOf(path); !m.Form {
			contentType, body = "application/json", []byte(`{"model":"tiny"}`)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+path, bytes.NewReader(body))
		must.NoError(t, err)
		req.Header.Set("Content-Type", contentType)
		resp, answer, err := r.do(req)
		must.NoError(t, err)
		must.Eq(t, 501, resp.StatusCode, must.Sprint(path, answer))
		e := errorIn(t, answer)
		must.Eq(t, "not_supported", code(e))
		must.Eq(t, "false", resp.Header.Get("X-Should-Retry"))
	}
	for method, path := range map[string]string{"GET": "/v1/realtime?model=tiny", "POST": "/v1/realtime/sessions"} {
		status, body := r.ask(t, method, path)
		must.Eq(t, 501, status)
		must.StrContains(t, errorIn(t, body).Hint, "/v1/audio/transcriptions")
	}
}

// unable is a router whose workers lack the needed capability.
type unable struct{}

func (unable) Route(_ context.Context, q inference.Query) (inference.Lease, error) {
	return inference.Lease{}, &inference.Unable{Model: q.Model, Need: core.Capabilities("chat").Lacks(q.Needs)}
}
