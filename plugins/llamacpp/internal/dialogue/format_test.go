package dialogue

import (
	"slices"
	"testing"

	"github.com/shoenig/test/must"
)

// The templates are shortened to what is typical of each family.
func TestRecognise(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		template string
		noTools  bool
		tokens   []string
		want     string
		opens    string // a prompt that opens a block of thinking
	}{
		"Qwen 3":        {template: `<tools>…<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call> {{ '<think>\n\n</think>\n\n' }}`, want: "hermes", opens: "<|im_start|>assistant\n<think>\n"},
		"Qwen 3 Coder":  {template: `<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>`, want: "qwen-coder"},
		"Llama 3.1":     {template: `<|start_header_id|>… Environment: ipython … {"name": function name, "parameters": dictionary} <|python_tag|>`, want: "llama-3"},
		"Llama 3.2":     {template: `<|start_header_id|> Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}`, want: "llama-3"},
		"Mistral Nemo":  {template: `[AVAILABLE_TOOLS]…[TOOL_CALLS][{"name"`, want: "mistral"},
		"Devstral":      {template: `[AVAILABLE_TOOLS]…[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}`, want: "mistral"},
		"Magistral":     {template: `[THINK]…[/THINK] [TOOL_CALLS]{{ name }}[ARGS]`, want: "mistral", opens: "[/INST][THINK]"},
		"DeepSeek R1":   {template: `<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>… '<｜Assistant｜><think>\n'`, want: "deepseek-v3", opens: "<｜Assistant｜><think>\n"},
		"DeepSeek V3.2": {template: `<｜DSML｜function_calls>`, want: "deepseek-v3.2"},
		"GLM 4.5":       {template: `<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>`, want: "glm-4"},
		"Kimi K2":       {template: `<|tool_calls_section_begin|><|tool_call_begin|>`, want: "kimi-k2"},
		"MiniMax M2":    {template: `{%- set toolcall_begin_token = '<minimax:tool_call>' -%}<invoke name="`, want: "minimax-m2"},
		"Granite 3":     {template: `<|start_of_role|>tools<|end_of_role|>`, want: "granite"},
		"Granite 4":     {template: `<|start_of_role|>…<tool_call>\n{\"name\"`, want: "hermes"},
		"Command R7B":   {template: `<|START_ACTION|>[ {"tool_call_id": "0"`, want: "command-r7b"},
		"Command R":     {template: `<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>…Write 'Action:' followed by a json-formatted list`, want: "command-r"},
		"Phi 4 mini":    {template: `'<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>'`, want: "phi-4"},
		"Nemotron":      {template: `<TOOLCALL>[{{"name"`, want: "nemotron"},
		"Nemotron 3":    {template: `<tool_call>\n<function=example>\n<parameter=a>`, want: "qwen-coder"},
		"gpt-oss":       {template: `<|start|>assistant<|channel|>commentary<|message|>`, want: "gpt-oss"},
		"Functionary":   {template: `<|start_header_id|>assistant<|end_header_id|>\n\n>>>all\n`, want: "functionary-v3.2"},
		"LFM2":          {template: `List of tools: <|tool_list_start|>[`, want: "lfm2"},
		"LFM2.5":        {template: `List of tools: [`, tokens: []string{"<|tool_call_start|>", "<|tool_call_end|>"}, want: "lfm2"},
		"Gemma 3":       {template: `<start_of_turn>model`, noTools: true, want: "generic"},
		"FunctionGemma": {template: `<start_function_call>call:`, want: "functiongemma"},
		"Gemma 4":       {template: `<|tool_call>call:`, want: "gemma-4"},
		"Seed-OSS":      {template: `<seed:tool_call>\n<function=`, want: "seed-oss", opens: "<seed:think>"},
		"ChatML":        {template: `<|im_start|>`, noTools: true, want: "generic"},
		"QwQ":           {template: `<|im_start|>assistant\n<think>\n`, noTools: true, want: "generic", opens: "<think>\n"},
		"tools unknown": {template: `{{ tools }}`, want: "generic"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := Recognise(c.template, !c.noTools, func(token string) bool { return slices.Contains(c.tokens, token) })
			must.Eq(t, c.want, f.Name)
			must.Eq(t, c.want != "generic", f.TakesTools)
			must.False(t, f.OpensThinking("<|im_start|>assistant\n"))
			if c.opens != "" {
				must.True(t, f.OpensThinking(c.opens))
				must.NotEq(t, "", f.EndOfThinking())
			}
			must.SliceContains(t, f.Markers(true), map[bool]string{true: "<tool_call>", false: f.Markers(true)[0]}[c.want == "generic"])
		})
	}
}
