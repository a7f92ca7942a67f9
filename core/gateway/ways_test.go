package gateway

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/shoenig/test/must"
)

func TestCORS(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rigOptions) { o.Origins = []string{"https://App.example"} })
	r.serve("w1", answerJSON(200, `{"choices":[]}`))
	ask := func(method, origin string, headers ...string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, r.url+"/v1/chat/completions", strings.NewReader(askTiny))
		must.NoError(t, err)
		req.Header.Set("Origin", origin)
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp, _, err := r.do(req)
		must.NoError(t, err)
		return resp
	}
	resp := ask("OPTIONS", "https://app.example", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization, content-type")
	must.Eq(t, 204, resp.StatusCode)
	must.Eq(t, "https://app.example", resp.Header.Get("Access-Control-Allow-Origin"))
	must.Eq(t, "authorization, content-type", resp.Header.Get("Access-Control-Allow-Headers"))
	must.StrContains(t, resp.Header.Get("Access-Control-Allow-Methods"), "POST")
	must.Eq(t, "", resp.Header.Get("Access-Control-Allow-Credentials"))
	resp = ask("POST", "https://app.example", "Sec-Fetch-Site", "cross-site")
	must.Eq(t, 200, resp.StatusCode)
	must.Eq(t, "https://app.example", resp.Header.Get("Access-Control-Allow-Origin"))
	must.Eq(t, "Origin", resp.Header.Get("Vary"))

	for _, method := range []string{"OPTIONS", "POST"} {
		resp = ask(method, "https://evil.example", "Access-Control-Request-Method", "POST")
		must.Eq(t, 403, resp.StatusCode)
		must.Eq(t, "", resp.Header.Get("Access-Control-Allow-Origin"))
	}
	resp = ask("POST", "https://app.example.evil")
	must.Eq(t, 403, resp.StatusCode)

	all := newRig(t, func(o *rigOptions) { o.Origins = []string{"*"} })
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, all.url+"/v1/models", nil)
	must.NoError(t, err)
	req.Header.Set("Origin", "null")
	resp, _, err = all.do(req)
	must.NoError(t, err)
	must.Eq(t, "null", resp.Header.Get("Access-Control-Allow-Origin"))
}

// A 403 names the setting that would allow the request.
func TestGuardNamesSetting(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for setting, change := range map[string]func(*http.Request){
		"allow_origins": func(req *http.Request) { req.Header.Set("Origin", "https://a.example") },
		"allow_hosts":   func(req *http.Request) { req.Host = "llm.example" },
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/v1/chat/completions", strings.NewReader(askTiny))
		must.NoError(t, err)
		change(req)
		resp, body, err := r.do(req)
		must.NoError(t, err)
		must.Eq(t, 403, resp.StatusCode)
		must.StrContains(t, errorIn(t, body).Hint, setting)
	}
}

func compress(t *testing.T, encoding string, body []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	switch encoding {
	case "gzip":
		w = gzip.NewWriter(&out)
	case "zstd":
		z, err := zstd.NewWriter(&out)
		must.NoError(t, err)
		w = z
	default:
		return body
	}
	_, err := w.Write(body)
	must.NoError(t, err)
	must.NoError(t, w.Close())
	return out.Bytes()
}

func TestBodyEncodings(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rigOptions) { o.MaxBodyBytes = 1 << 20 })
	got := ""
	r.serve("w1", func(w http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body)
		got = string(b)
		answerJSON(200, `{"choices":[]}`)(w, req)
	})
	ask := func(encoding string, body []byte) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/v1/chat/completions", bytes.NewReader(body))
		must.NoError(t, err)
		if encoding != "" {
			req.Header.Set("Content-Encoding", encoding)
		}
		resp, answer, err := r.do(req)
		must.NoError(t, err)
		return resp, answer
	}
	for _, encoding := range []string{"", "identity", "gzip", "zstd"} {
		got = ""
		resp, answer := ask(encoding, compress(t, encoding, []byte(askTiny)))
		must.Eq(t, 200, resp.StatusCode, must.Sprint(encoding, answer))
		must.Eq(t, askTiny, got)
	}
	resp, _ := ask("", []byte("\ufeff"+askTiny))
	must.Eq(t, 200, resp.StatusCode)
	must.Eq(t, askTiny, got)

	resp, answer := ask("br", []byte(askTiny))
	must.Eq(t, 415, resp.StatusCode)
	must.StrContains(t, answer, `"br`)
	bomb := bytes.Repeat([]byte(" "), 4<<20)
	for _, encoding := range []string{"gzip", "zstd"} {
		resp, _ = ask(encoding, compress(t, encoding, bomb))
		must.Eq(t, 413, resp.StatusCode, must.Sprint(encoding))
		resp, _ = ask(encoding, []byte(askTiny))
		must.Eq(t, 400, resp.StatusCode, must.Sprint(encoding))
	}
	must.Eq(t, 0, int(r.bodies.used))
}

// Frequent results of joining a base URL and a route.
func TestTidyPath(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	for _, path := range []string{"//v1/models", "/v1//models", "/v1/v1/models", "///models"} {
		resp, _ := r.get(path)
		must.Eq(t, 200, resp.StatusCode, must.Sprint(path))
	}
	for path, want := range map[string]string{"//api/chat": `{"error":"`, "/v1/v1/messages": `{"type":"error"`} {
		_, body, err := r.post(path, "{}")
		must.NoError(t, err)
		must.StrHasPrefix(t, want, body, must.Sprint(path)) // in the form of the API
	}
}
