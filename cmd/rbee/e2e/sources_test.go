package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

const (
	hubToken  = "hf_secretoftheendtoendtest"
	hubCommit = "0123456789abcdef0123456789abcdef01234567"
)

// fakeHub has rbee-tiny in a gated repository. Its files are on another host, which receives no
// token.
type fakeHub struct {
	hub, cdn *httptest.Server
	model    []byte
	digest   string
	asked    atomic.Int64 // requests to the files' host
}

func newFakeHub(t testing.TB) *fakeHub {
	t.Helper()
	model, err := os.ReadFile("../../../plugins/catalog-builtin/rbee-tiny.gguf")
	must.NoError(t, err)
	sum := sha256.Sum256(model)
	h := &fakeHub{model: model, digest: hex.EncodeToString(sum[:])}
	h.cdn = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" || r.Header.Get("Referer") != "" {
			t.Error("the files' host sees a credential")
		}
		if r.URL.Query().Get("signature") != "s" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		h.asked.Add(1)
		w.Header().Set("ETag", `"`+h.digest+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(h.model))
	}))
	t.Cleanup(h.cdn.Close)
	h.hub = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/api/models/org/Tiny-GGUF/revision/"):
			_ = json.NewEncoder(w).Encode(map[string]any{
				"id": "org/Tiny-GGUF", "sha": hubCommit, "gated": "auto", "cardData": map[string]any{"license": "apache-2.0"},
				"siblings": []map[string]any{
					{"rfilename": "README.md", "size": 5},
					{"rfilename": "rbee-tiny-Q4_K_M.gguf", "size": len(h.model), "lfs": map[string]any{"sha256": h.digest, "size": len(h.model)}},
					{"rfilename": "rbee-tiny-F16.gguf", "size": 1, "lfs": map[string]any{"sha256": strings.Repeat("0", 64), "size": 1}},
				},
			})
		case r.URL.Path == "/org/Tiny-GGUF/resolve/"+hubCommit+"/rbee-tiny-Q4_K_M.gguf":
			if r.Header.Get("Authorization") != "Bearer "+hubToken {
				w.Header().Set("X-Error-Code", "GatedRepo")
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			w.Header().Set("X-Linked-Etag", `"`+h.digest+`"`)
			http.Redirect(w, r, h.cdn.URL+"/blob?signature=s", http.StatusFound)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(h.hub.Close)
	return h
}

const loopbackAllowed = "queen {\n  enabled = true\n}\nhive {\n  enabled = true\n  download {\n    allow_addresses = [\"127.0.0.0/8\"]\n  }\n}\n"

// From a reference on the Hub to an answer. The token appears only in the requests to the Hub.
func TestPullFromHuggingFace(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	store := ownStore(t)
	a := startAgent(t, agentOptions{config: loopbackAllowed, store: store, env: []string{"HF_ENDPOINT=" + h.hub.URL, "HF_TOKEN=" + hubToken}})
	pulled := a.rbee("pull", "hf:org/Tiny-GGUF")
	must.Eq(t, 0, pulled.code, must.Sprint(pulled.stderr))
	must.StrContains(t, pulled.stderr, "Q4_K_M is chosen of Q4_K_M, F16")
	var m core.Model
	must.NoError(t, json.Unmarshal([]byte(a.must("show", "rbee-tiny-Q4_K_M", "--format", "json")), &m))
	must.EqOp(t, "hf.co/org/Tiny-GGUF:Q4_K_M", m.ID) // and its file's name is an alias
	must.Eq(t, "huggingface:org/Tiny-GGUF/rbee-tiny-Q4_K_M.gguf@"+hubCommit, m.Ref)
	must.Eq(t, "sha256:"+h.digest, m.Files[0].Digest)
	must.Eq(t, "apache-2.0", m.License)
	must.Positive(t, h.asked.Load())

	w := a.spawn("--model", "rbee-tiny-Q4_K_M", "--slots", "1")
	must.NotEq(t, "", w.Worker.ID)
	answer := a.must("infer", "--model", "rbee-tiny-Q4_K_M", "--prompt", "Once upon a time", "--max-tokens", "8", "--temperature", "0")
	must.NotEq(t, "", strings.TrimSpace(answer))
	a.must("alias", "set", "gpt-4o-mini", "ORG/tiny")
	must.EqOp(t, answer, a.must("infer", "--model", "gpt-4o-mini", "--prompt", "Once upon a time", "--max-tokens", "8", "--temperature", "0"))

	for _, dir := range []string{store, a.dir} {
		must.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || strings.Contains(path, "workers") {
				return err
			}
			b, err := os.ReadFile(path)
			must.NoError(t, err)
			must.False(t, bytes.Contains(b, []byte(hubToken)), must.Sprintf("%s has the token", path))
			return nil
		}))
	}
	must.StrNotContains(t, a.log.String()+pulled.stderr+pulled.stdout, hubToken)
}

func TestPullSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	refused := func(config string, env []string, ref string) string {
		t.Helper()
		a := startAgent(t, agentOptions{config: config, store: ownStore(t), env: env})
		r := a.rbee("pull", ref)
		must.Eq(t, 1, r.code)
		return r.stderr
	}
	must.StrContains(t, refused(loopbackAllowed, []string{"HF_ENDPOINT=" + h.hub.URL}, "hf:org/Tiny-GGUF"), "HF_TOKEN")
	must.StrContains(t, refused(oneMachine, []string{"HF_ENDPOINT=" + h.hub.URL, "HF_TOKEN=" + hubToken}, "hf:org/Tiny-GGUF"), "hive.download.allow_addresses")
	must.StrContains(t, refused(loopbackAllowed, []string{"HF_HUB_OFFLINE=1"}, "hf:org/Tiny-GGUF"), "HF_HUB_OFFLINE")
	must.Zero(t, h.asked.Load())
}

func TestPullFromAnAddress(t *testing.T) {
	t.Parallel()
	h := newFakeHub(t)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(h.model))
	}))
	t.Cleanup(s.Close)
	a := startAgent(t, agentOptions{config: loopbackAllowed, store: ownStore(t)})
	ref := fmt.Sprintf("%s/models/one.gguf#sha256=%s", s.URL, h.digest)
	m := jsonOf[core.Model](a, "pull", ref)
	must.Eq(t, strings.TrimPrefix(s.URL, "http://")+"/models/one", m.ID)
	must.Eq(t, ref, m.Ref)
	must.Eq(t, m.ID, jsonOf[core.Model](a, "model", "get", "one").ID)
	wrong := a.rbee("pull", s.URL+"/models/two.gguf#sha256="+strings.Repeat("0", 64))
	must.Eq(t, 1, wrong.code)
	must.StrNotContains(t, a.must("ls"), "two")
	first := a.rbee("pull", s.URL+"/models/three.gguf")
	must.Eq(t, 0, first.code)
	must.StrContains(t, first.stderr, "no digest of three.gguf is known")
}
