package inference

import (
	"errors"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

func TestNeeds(t *testing.T) {
	t.Parallel()
	const chat, completion = "/v1/chat/completions", "/v1/completions"
	for _, c := range []struct {
		path, fields string
		want         []string
	}{
		{chat, ``, []string{"chat"}},
		{completion, ``, []string{"completions"}},
		{"/v1/other", `,"tools":[{}]`, nil},
		{"/v1/rerank", `,"query":"q"`, []string{"rerank"}},
		{"/infill", `,"input_prefix":"x","logprobs":1`, []string{"infill"}},
		{"/completion", `,"prompt":"x"`, []string{"completions"}},
		{completion, `,"suffix":"x"`, []string{"completions", "infill"}},
		{completion, `,"suffix":""`, []string{"completions"}},
		{completion, `,"suffix":null`, []string{"completions"}},
		{chat, `,"suffix":"x"`, []string{"chat"}},
		{"/tokenize", `,"content":"x"`, []string{"tokenize"}},
		{"/detokenize", ``, []string{"tokenize"}},
		{"/apply-template", `,"tools":[{}]`, []string{"chat", "tokenize"}},
		{"/v1/chat/completions/input_tokens", ``, []string{"chat", "tokenize"}},
		{chat, `,"tools":[{"type":"function"}]`, []string{"chat", "tools"}},
		{chat, `,"tools":[ ],"functions":null`, []string{"chat"}},
		{chat, `,"functions":[{}]`, []string{"chat", "tools"}},
		{chat, `,"response_format":{"type":"text"}`, []string{"chat"}},
		{chat, `,"response_format":{"json_schema":{"type":"object"},"t\u0079pe":"json_schema"}`, []string{"chat", "json_schema"}},
		{chat, `,"response_format":{"type":1}`, []string{"chat"}},
		{chat, `,"response_format":null`, []string{"chat"}},
		{chat, `,"grammar":"root ::= x"`, []string{"chat", "json_schema"}},
		{chat, `,"grammar":"","guided_json":null`, []string{"chat"}},
		{chat, `,"guided_choice":["a"],"response_format":{"type":"json_object"}`, []string{"chat", "json_schema"}},
		{chat, `,"structured_outputs":{"regex":"a"}`, []string{"chat", "json_schema"}},
		{chat, `,"logprobs":true`, []string{"chat", "logprobs"}},
		{chat, `,"logprobs":false`, []string{"chat"}},
		{completion, `,"logprobs":0,"tools":[{}]`, []string{"completions", "logprobs"}},
		{chat, `,"messages":[{"role":"user","content":[{"type" : "image_url","image_url":{"url":"data:"}}]}]`, []string{"chat", "vision"}},
		{chat, `,"messages":[{"content":[{"type":"input_audio"},{"type":"text","text":"x"}]}]`, []string{"chat", "audio"}},
		{chat, `,"messages":[{"content":"image_url"},{"content":"\"type\":\"image_url\""},{"image_url":"type"}]`, []string{"chat"}},
	} {
		f, err := readFacts([]byte(`{"model":"m"`+c.fields+`}`), "")
		must.NoError(t, err, must.Sprint(c.fields))
		must.Eq(t, c.want, f.needs(c.path), must.Sprint(c.path, c.fields))
	}
}

func TestUnableNamesField(t *testing.T) {
	t.Parallel()
	for need, param := range map[string]string{"tools": "tools", "json_schema": "response_format", "vision": "messages", "chat": "model", "rerank": "model", "tokenize": "model", "infill": "suffix"} {
		err := unable(&Unable{Model: "m", Need: need})
		field, ok := errors.AsType[*FieldError](err)
		must.True(t, ok)
		must.Eq(t, param, field.Param)
		must.Eq(t, openai.CodeNotSupported, field.Code)
		must.Eq(t, core.Invalid, core.KindOf(err))
		must.EqError(t, err, "no worker of m can do "+need)
		must.NotEq(t, "", core.HintOf(err))
	}
}
