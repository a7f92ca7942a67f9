package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// conversationsStay holds conversations with a model of several workers: each continues at the
// worker that has read it, which reads only what is new.
func conversationsStay(t *testing.T, a *agent) {
	t.Helper()
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	turn := func(messages ...message) (worker, route string, cached int) {
		t.Helper()
		body, err := json.Marshal(map[string]any{"model": "rbee-tiny", "max_tokens": 4, "temperature": 0, "messages": messages})
		must.NoError(t, err)
		resp, err := http.Post("http://"+a.addr+"/v1/chat/completions", "application/json", bytes.NewReader(body))
		must.NoError(t, err)
		defer resp.Body.Close()
		must.Eq(t, http.StatusOK, resp.StatusCode)
		var out struct {
			Usage struct {
				Details struct {
					Cached int `json:"cached_tokens"`
				} `json:"prompt_tokens_details"`
			} `json:"usage"`
		}
		must.NoError(t, json.NewDecoder(resp.Body).Decode(&out))
		return resp.Header.Get("X-Rbee-Worker"), resp.Header.Get("X-Rbee-Route"), out.Usage.Details.Cached
	}
	for i := range 6 {
		first := message{"user", fmt.Sprintf("%d. %s", i, strings.Repeat("What is a bee? ", 22))}
		worker, _, _ := turn(first)
		again, route, cached := turn(first, message{"assistant", "An animal."}, message{"user", "Why?"})
		must.Eq(t, worker, again)
		must.StrContains(t, route, "has read the beginning of the prompt")
		must.Positive(t, cached)
	}
}
