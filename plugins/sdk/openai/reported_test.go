package openai

import (
	"testing"

	"github.com/shoenig/test/must"
)

// Requests that clients were seen to send, and other servers to reject, are accepted; meaningless
// ones are rejected with the field's path.
func TestReportedRequests(t *testing.T) {
	t.Parallel()
	const user = `{"role":"user","content":"a"}`
	ask := func(messages, more string) error {
		_, err := DecodeChat([]byte(`{"model":"m","messages":[` + messages + `]` + more + `}`))
		return err
	}
	for _, more := range []string{
		`,"stream_options":{"include_usage":true}`, `,"stream":null,"stream_options":{"include_usage":true}`, `,"stream_options":null`,
		`,"max_tokens":-1`, `,"max_tokens":0`, `,"max_tokens":100.0`, `,"max_tokens":1e2`, `,"max_tokens":2147483648`, `,"seed":1.0`,
		`,"logprobs":false,"top_logprobs":0`, `,"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"none"`,
	} {
		must.NoError(t, ask(user, more), must.Sprint(more))
	}
	must.NoError(t, ask(user+`,{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":{"x":1}}}]},{"role":"tool","tool_call_id":"c","content":"1"}`, ""))
	for _, content := range []string{`[{"text":"x"}]`, `[{"type":"input_text","text":"x"}]`} {
		must.NoError(t, ask(`{"role":"user","content":`+content+`}`, ""), must.Sprint(content))
	}
	for _, message := range []string{
		`{"role":"user","content":[{"type":"text"}]}`, `{"role":"user","content":[null]}`, `{"role":"user","content":[]}`, `{"role":"user"}`,
	} {
		must.ErrorContains(t, ask(message, ""), "messages", must.Sprint(message))
	}
}

// TestKeyCase covers misspelled keys: encoding/json matches those that differ only by
// case, and unknown keys are ignored.
func TestKeyCase(t *testing.T) {
	t.Parallel()
	r, err := DecodeChat([]byte(`{"model":"m","messages":[{"Role":"user","CONTENT":"a"}],"MAX_TOKENS":5,"Temperature":0.5,"max_tokns":7}`))
	must.NoError(t, err)
	must.Eq(t, 5, r.MaxOutput())
	must.Eq(t, 0.5, *r.Temperature)
	_, err = DecodeChat([]byte(`{"model":"m","messages":[{"role":"user","content":"a"}],"MAX_TOKENS":"x"}`))
	must.ErrorContains(t, err, "must be an integer", must.Sprint("it is not ignored"))
}
