package llamacpp

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// TestRealTemplates renders conversations with published templates and recognises their families.
// `make templates` fetches them; they are not part of this repository.
func TestRealTemplates(t *testing.T) {
	t.Parallel()
	dir := os.Getenv("RBEE_TEST_TEMPLATES")
	if dir == "" {
		t.Skip("RBEE_TEST_TEMPLATES is not set: `make templates` sets it")
	}
	for name, c := range map[string]struct {
		family   string
		wants    templateWants
		thinks   bool
		prompt   string // for a system message and a question
		contains []string
	}{
		"qwen3": {
			family: "hermes", wants: templateWants{tools: true, noNull: true}, thinks: true,
			prompt: "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nTime?<|im_end|>\n<|im_start|>assistant\n",
			contains: []string{
				"<|im_start|>system\nBe brief.\n\n# Tools", `{"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}` + "\n</tools>",
				"<tool_call>\n{\"name\": \"get_time\", \"arguments\": {\"zone\": \"CET\"}}\n</tool_call><|im_end|>", "<|im_start|>user\n<tool_response>\nnoon\n</tool_response><|im_end|>",
			},
		},
		"deepseek_v3": {
			// The template writes calls but knows no tools: they are described in words.
			family: "generic", wants: templateWants{argumentText: true}, prompt: "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Time?<｜Assistant｜>",
			contains: []string{"You can call these functions", "get_time\n```json\n{\"zone\":\"CET\"}\n```<｜tool▁call▁end｜>", "<｜tool▁output▁begin｜>noon<｜tool▁output▁end｜>"},
		},
		"llama3": {
			family: "generic", wants: templateWants{noCalls: true, noResults: true},
			prompt:   "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nTime?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
			contains: []string{`{"name": "get_time", "arguments": {"zone":"CET"}}`, "Result of get_time:\nnoon"},
		},
		"gemma3": {
			family: "generic", wants: templateWants{noCalls: true, noResults: true}, prompt: "<bos><start_of_turn>user\nBe brief.\n\nTime?<end_of_turn>\n<start_of_turn>model\n",
			contains: []string{"<start_of_turn>user\nBe brief.\nYou can call these functions", `{"name": "get_time", "arguments": {"zone":"CET"}}`, "Result of get_time:\nnoon"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, err := os.ReadFile(filepath.Join(dir, name+".json"))
			must.NoError(t, err)
			var config struct {
				Template string          `json:"chat_template"`
				RawBOS   json.RawMessage `json:"bos_token"`
				RawEOS   json.RawMessage `json:"eos_token"`
			}
			must.NoError(t, json.Unmarshal(b, &config))
			special := func(raw json.RawMessage) string {
				var text string
				var token struct{ Content string }
				if json.Unmarshal(raw, &text) != nil {
					_ = json.Unmarshal(raw, &token) // null has no text
					text = token.Content
				}
				return text
			}
			tmpl, err := newChatTemplate(config.Template, special(config.RawBOS), special(config.RawEOS), newControlTokens(nil))
			must.NoError(t, err)
			must.Eq(t, c.family, tmpl.dialogue.Name)
			must.Eq(t, c.wants, tmpl.wants)
			must.Eq(t, c.thinks, tmpl.dialogue.Thinks())
			render := func(body string) string {
				req, err := openai.DecodeChat([]byte(body))
				must.NoError(t, err)
				text, err := tmpl.render(t.Context(), req, time.Time{})
				must.NoError(t, err)
				return text.String()
			}
			must.Eq(t, c.prompt, render(`{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Time?"}]}`))
			got := render(`{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Time?"},
				{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"get_time","arguments":"{\"zone\":\"CET\"}"}}]},
				{"role":"tool","tool_call_id":"c1","content":"noon"}],"tools":[{"type":"function","function":{"name":"get_time"}}]}`)
			for _, x := range c.contains {
				must.StrContains(t, got, x)
			}
			if bos := special(config.RawBOS); bos != "" {
				must.Eq(t, strings.Count(c.prompt, bos), strings.Count(got, bos))
			}
		})
	}
}
