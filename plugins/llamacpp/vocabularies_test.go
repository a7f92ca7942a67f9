package llamacpp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// Settings of TestVocabularies: the path of a llama-server, and a folder of published files
// tokenizer.json, each named after llama.cpp's name for its pre-tokenizer: "llama-bpe.json".
const (
	llamaServerEnv = "RBEE_TEST_LLAMA_SERVER"
	tokenizersEnv  = "RBEE_TEST_TOKENIZERS"
)

// startLlamaServer serves a model on a Unix socket until the test ends.
func startLlamaServer(t *testing.T, exe, model string) *testWorker {
	t.Helper()
	dir, err := os.MkdirTemp("", "ls") //nolint:usetesting // the path of a socket has 104 bytes at most
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	socket := filepath.Join(dir, "s.sock")
	cmd := exec.Command(exe, "-m", model, "--host", socket, "-np", "1", "-c", "256", "-t", "1", "-tb", "1", "--offline", "--no-ui", "--no-warmup")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	must.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGKILL) // it has no state to save
		_ = cmd.Wait()
	})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	eventually(t, func() error {
		resp, err := client.Get("http://peer/health")
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			return errors.Join(err, errors.New(resp.Status))
		}
		return nil
	})
	return &testWorker{url: "http://peer", client: client}
}

// vocabularyTexts returns texts in many scripts, cases on which tokenizers disagree, and random
// texts.
func vocabularyTexts(markers []string) []string {
	texts := []string{
		"", " ", "  ", "   a", "a   ", "\n", "\n\n\n a\r\n\tb\t\t", "a\u00a0b\u2003c\u3000d", "Hello, world!", "HELLO hElLo I'm you'LL we'Ve 'tis",
		"0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 ٣٤٥ १२३ ²³ ½ Ⅷ", "snake_case camelCase kebab-case a.b.c/d\\e:f;g", "((a+b)*c)==d&&!e||f<<2>>=1 /* x */ // y #z",
		"äöüß éèê ñ ç œ æ ø å ı İ ſ ﬁ", "A\u0308 e\u0301 n\u0303 \u0301", "Привет, мир! Ёжик", "Γειά σου Κόσμε ΐ", "שלום עולם", "مرحبا بالعالم ١٢٣", "नमस्ते दुनिया क्षत्रिय", "สวัสดีชาวโลก",
		"你好，世界！這是一個測試。", "こんにちは世界、カタカナ ﾊﾝｶｸ", "안녕하세요 세계 각", "ქართული հայերեն አማርኛ", "🙂 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️ 🐝", "𝕳𝖊𝖑𝖑𝖔 𐍈 \U0010FFFF \uFFFD", "\u200b\u200d\u202e\ufeff x",
		"https://example.org/a?b=c&d=%20#e me@example.org", "{\"a\": [1, 2.5e-3, null], \"b\": \"\\n\"}", "<p class=\"x\">&amp;</p>", "\x01\x02\x7f\x1b[0m", strings.Repeat("ab ", 40), strings.Repeat("=", 70), strings.Repeat(" ", 70) + "x",
		strings.Repeat("lorem 42 ipsum, ", 400), strings.Repeat("日本 kana é\n", 500), // long enough to be cut
		"\u2581a \u2581 <0x41> <0xZZ>", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "don’t “quote” – dash … ‹x›",
	}
	for _, m := range markers {
		texts = append(texts, m, m+m, "a "+m+" b", "a"+m+"b", m[:len(m)-1], m[1:], " "+m+"\n", m+" x")
	}
	rnd := rand.New(rand.NewPCG(14, 3))
	parts := append([]string{" ", "  ", "\n", "a", "Ab", "the", "é", "日本", "🙂", "\u200d", "9", "42", "'s", "_", "...", "\t", "ß", "й", "\u0301", "क्"}, markers...)
	for range 60 {
		var b strings.Builder
		for range 1 + rnd.IntN(16) {
			b.WriteString(parts[rnd.IntN(len(parts))])
		}
		texts = append(texts, b.String())
	}
	return texts
}

// The worker and llama-server convert the same texts to the same tokens with the same vocabulary,
// with and without special tokens, and back to the same texts. The worker adds to the engine how
// long texts are cut, the begin and end tokens, and NUL, which llama-server passes on.
func TestVocabularies(t *testing.T) {
	exe := os.Getenv(llamaServerEnv)
	if exe == "" {
		t.Skipf("%s is not set: make vocabularies LLAMA_SERVER=PATH", llamaServerEnv)
	}
	cases := map[string][]string{
		"spm": {"-arch", "llama"},
		"wpm": {"-arch", "bert", "-pooling", "mean"},
		"ugm": {"-arch", "bert", "-tokenizer", "ugm", "-pooling", "mean"},
	}
	for _, pre := range []string{"gpt-2", "qwen2", "llama-bpe", "gpt-4o", "deepseek-v3", "tekken", "falcon"} {
		cases["bpe "+pre] = []string{"-arch", "qwen2", "-tokenizer", "bpe", "-pre", pre}
	}
	files, err := filepath.Glob(filepath.Join(os.Getenv(tokenizersEnv), "*.json"))
	must.NoError(t, err)
	for _, f := range files {
		path, err := filepath.Abs(f)
		must.NoError(t, err)
		pre := strings.TrimSuffix(filepath.Base(f), ".json")
		cases["published "+pre] = []string{"-arch", "qwen2", "-tokenizer-json", path, "-pre", pre}
	}
	for name, args := range cases {
		t.Run(name, func(t *testing.T) {
			path := synthetic(t, args...)
			w, peer := startWorkerOf(t, path, 1, 0, ""), startLlamaServer(t, exe, path)
			compareVocabularies(t, w, peer)
		})
	}
}

func compareVocabularies(t *testing.T, w, peer *testWorker) {
	t.Helper()
	var markers []string
	for id := range w.served.model.pieces {
		if s := w.served.model.tokenText(token(id)); w.served.model.pieces[id] == "" && len(s) > 2 && len(markers) < 6 {
			markers = append(markers, s)
		}
	}
	differ := 0
	for _, text := range vocabularyTexts(markers) {
		for _, flags := range []map[string]any{{}, {"add_special": true}, {"parse_special": false}, {"add_special": true, "parse_special": false}} {
			got, want := w.tokensOf(t, text, flags), peer.tokensOf(t, text, flags)
			if fmt.Sprint(got) != fmt.Sprint(want) {
				differ++
				t.Errorf("%q with %v is %v, and %v by llama-server", text, flags, got, want)
			}
			var back, theirs openai.DetokenizeResponse
			w.ask(t, "/detokenize", map[string]any{"tokens": got}, &back)
			peer.ask(t, "/detokenize", map[string]any{"tokens": got}, &theirs)
			if back != theirs {
				differ++
				t.Errorf("%v are %q, and %q by llama-server", got, back.Content, theirs.Content)
			}
			if differ > 20 {
				t.FailNow()
			}
		}
	}
	// A request's body cannot contain invalid UTF-8: in JSON it is replaced or refused.
	b, err := json.Marshal(map[string]any{"content": "a\xffb\xc3"})
	must.NoError(t, err)
	var out struct{ Tokens []int32 }
	w.ask(t, "/tokenize", json.RawMessage(b), &out)
	must.Eq(t, w.tokensOf(t, "a\uFFFDb\uFFFD", nil), out.Tokens)
}
