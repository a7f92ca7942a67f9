package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// actor is a server of OpenAI's chat API that answers like a capable model would: coding agents
// send more instructions than a small model can read. It answers a question with text, a request to
// count with a call of the agent's shell, and the shell's output with an answer that repeats it.
func actor(t testing.TB) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprint(w, `{"object":"list","data":[{"id":"actor","object":"model","created":1,"owned_by":"test"}]}`)
	})
	mux.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Stream   bool
			Messages []openai.Message
			Tools    []openai.Tool
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || len(in.Messages) == 0 {
			http.Error(w, `{"error":{"message":"a chat is needed","type":"invalid_request_error"}}`, http.StatusBadRequest)
			return
		}
		// Some agents append reminders to what a person or a tool said.
		var last openai.Message
		said, counting := "", false
		for _, m := range in.Messages {
			text, _ := m.Content.PlainText()
			counting = counting || strings.Contains(text, "Count the bees")
			if m.Role == "user" || m.Role == "tool" {
				last, said = m, text
			}
			if m.Role == "tool" {
				break
			}
		}
		message := map[string]any{"role": "assistant", "content": "A queen lays the eggs."}
		finish := openai.FinishStop
		switch call := shellCall(in.Tools); {
		case last.Role == "tool":
			message["content"] = "The shell said: " + said
		case call != nil && counting:
			message["content"], message["tool_calls"], finish = nil, []any{call}, openai.FinishToolCalls
		}
		const usage = `"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}`
		m, _ := json.Marshal(message)
		if !in.Stream {
			w.Header().Set("Content-Type", "application/json")
			_, _ = fmt.Fprintf(w, `{"id":"c","object":"chat.completion","created":1,"model":"actor","choices":[{"index":0,"message":%s,"finish_reason":%q}],%s}`, m, finish, usage)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		const head = `data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"actor","choices":`
		_, _ = fmt.Fprintf(w, head+"[{\"index\":0,\"delta\":%s,\"finish_reason\":null}]}\n\n"+head+"[{\"index\":0,\"delta\":{},\"finish_reason\":%q}]}\n\n"+head+"[],%s}\n\ndata: [DONE]\n\n", m, finish, usage)
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// shellCall returns a call of the shell among an agent's tools; nil: it has none.
func shellCall(tools []openai.Tool) any {
	const command = "echo bees-$((3+4))"
	for _, tool := range tools {
		arguments := map[string]map[string]any{
			"exec_command": {"cmd": command},
			"shell":        {"command": []string{"sh", "-c", command}},   // its older name
			"bash":         {"command": command, "description": "count"}, // opencode's
			"Bash":         {"command": command, "description": "count"}, // Claude Code's
		}[tool.Function.Name]
		if arguments != nil {
			b, _ := json.Marshal(arguments)
			return map[string]any{"index": 0, "id": "call_1", "type": "function", "function": map[string]string{"name": tool.Function.Name, "arguments": string(b)}}
		}
	}
	return nil
}

// TestCodingAgents makes coding agents answer a prompt and run a command, started by "rbee launch"
// without any configuration. `make conformance` installs them.
func TestCodingAgents(t *testing.T) {
	t.Parallel()
	dir := os.Getenv("RBEE_TEST_AGENTS")
	if dir == "" {
		t.Skip("RBEE_TEST_AGENTS is not set: `make conformance` installs the agents and sets it")
	}
	a := startAgent(t, agentOptions{config: oneMachine + fmt.Sprintf("worker \"actor\" {\n  plugin = \"rbee-worker-openai\"\n  config {\n    url = [%q]\n    capabilities = [\"chat\", \"tools\", \"tokenize\"]\n  }\n}\n", actor(t).URL)})
	for name, how := range map[string]struct {
		program string   // below node_modules: a script that npm does not run would create its package's links
		args    []string // the prompt follows
	}{
		// The sandbox is off: confining the shell to the test's own folder gains nothing.
		"codex":    {".bin/codex", []string{"exec", "--skip-git-repo-check", "--sandbox", "danger-full-access"}},
		"opencode": {"opencode-linux-" + npmArch() + "/bin/opencode", []string{"run"}},
		"claude":   {"@anthropic-ai/claude-code-linux-" + npmArch() + "/claude", []string{"--allowedTools", "Bash", "-p"}},
	} {
		t.Run(name, func(t *testing.T) {
			program := filepath.Join(dir, "node_modules", filepath.FromSlash(how.program))
			if _, err := os.Stat(program); err != nil {
				t.Skipf("npm has no build of %s for this machine: %v", name, err)
			}
			home := t.TempDir()
			bin := filepath.Join(home, "bin")
			must.NoError(t, os.Mkdir(bin, 0o700))
			must.NoError(t, os.Symlink(program, filepath.Join(bin, name)))
			ask := func(prompt string) string {
				cmd := a.command(patient(t), append(append([]string{"launch", name, "--model", "actor", "--"}, how.args...), prompt)...)
				cmd.Dir = home
				cmd.Env = append(cmd.Env, "PATH="+bin+string(filepath.ListSeparator)+os.Getenv("PATH"), "HOME="+home, "NO_PROXY=*")
				r := run(t, cmd)
				must.Eq(t, 0, r.code, must.Sprint(r.stdout, r.stderr))
				return r.stdout
			}
			must.StrContains(t, ask("What is a queen?"), "A queen lays the eggs.")
			counted := ask("Count the bees with your shell.")
			must.StrContains(t, counted, "The shell said: ")
			must.StrContains(t, counted, "bees-7")
		})
	}
}

// npmArch returns this machine's processor as npm's packages name it.
func npmArch() string {
	if runtime.GOARCH == "amd64" {
		return "x64"
	}
	return runtime.GOARCH
}
