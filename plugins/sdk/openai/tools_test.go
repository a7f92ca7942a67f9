package openai

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

const twoTools = `"tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object"},"strict":true}},{"function":{"name":"g.h"}}]`

func TestDecodeTools(t *testing.T) {
	t.Parallel()
	for more, want := range map[string]struct {
		choice   ToolChoice
		offered  string
		parallel bool
	}{
		twoTools:                         {ToolChoice{Mode: "auto"}, "f g.h", true},
		twoTools + `,"tool_choice":null`: {ToolChoice{Mode: "auto"}, "f g.h", true},
		twoTools + `,"tool_choice":"none","parallel_tool_calls":false`:            {ToolChoice{Mode: "none"}, "", false},
		twoTools + `,"tool_choice":"required"`:                                    {ToolChoice{Mode: "required"}, "f g.h", true},
		twoTools + `,"tool_choice":{"type":"function","function":{"name":"g.h"}}`: {ToolChoice{"required", []string{"g.h"}}, "g.h", true},
		twoTools + `,"tool_choice":{"type":"function","name":"f"}`:                {ToolChoice{"required", []string{"f"}}, "f", true},
		twoTools + `,"tool_choice":{"type":"required"}`:                           {ToolChoice{Mode: "required"}, "f g.h", true},
		twoTools + `,"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"function","function":{"name":"f"}}]}}`: {ToolChoice{"auto", []string{"f"}}, "f", true},
		`"functions":[{"name":"f"}],"function_call":{"name":"f"}`:                                                                                  {ToolChoice{"required", []string{"f"}}, "f", false},
		`"functions":[{"name":"f"}],"function_call":"none"`:                                                                                        {ToolChoice{Mode: "none"}, "", false},
		`"functions":[{"name":"f"}]`:                                              {ToolChoice{Mode: "auto"}, "f", false},
		`"functions":[],"tools":[],"tool_choice":"auto"`:                          {ToolChoice{Mode: "auto"}, "", true},
		`"functions":null,"tools":null,"tool_choice":"none"`:                      {ToolChoice{Mode: "none"}, "", true},
		`"tools":[{"type":"function","function":{"name":"f","parameters":null}}]`: {ToolChoice{Mode: "auto"}, "f", true},
		`"reasoning_effort":"high"`:                                               {ToolChoice{Mode: "auto"}, "", true},
	} {
		r, err := DecodeChat([]byte(msg(more)))
		must.NoError(t, err, must.Sprint(more))
		must.Eq(t, want.choice, r.Choice(), must.Sprint(more))
		var names []string
		for _, f := range r.Offered() {
			names = append(names, f.Name)
		}
		must.Eq(t, want.offered, strings.Join(names, " "), must.Sprint(more))
		must.Eq(t, want.parallel, r.Parallel(), must.Sprint(more))
		b, err := json.Marshal(r)
		must.NoError(t, err)
		again, err := DecodeChat(b)
		must.NoError(t, err, must.Sprintf("%s", b))
		must.Eq(t, r.Choice(), again.Choice())
		must.Eq(t, r.Offered(), again.Offered())
	}
}

func TestDecodeToolsRefused(t *testing.T) {
	t.Parallel()
	tool := func(name, parameters string) string {
		return fmt.Sprintf(`{"type":"function","function":{"name":%q,"parameters":%s}}`, name, parameters)
	}
	long := strings.Repeat("n", MaxToolName+1)
	many := make([]string, MaxTools+1)
	for i := range many {
		many[i] = tool(fmt.Sprintf("f%d", i), "{}")
	}
	message := func(m string) string { return `{"messages":[{"role":"user","content":"x"},` + m + `]}` }
	for body, c := range map[string]struct{ param, says string }{
		msg(`"tools":{}`):   {"tools", "an array"},
		msg(`"tools":[{}]`): {"tools[0].function.name", "missing"},
		msg(`"tools":[{"type":"custom","custom":{"name":"x"}}]`):                                             {"tools[0].type", "not supported"},
		msg(`"tools":[` + tool("a", "{}") + `,` + tool("a", "{}") + `]`):                                     {"tools[1].function.name", "twice"},
		msg(`"tools":[` + tool("a b", "{}") + `]`):                                                           {"tools[0].function.name", "characters"},
		msg(`"tools":[` + tool(long, "{}") + `]`):                                                            {"tools[0].function.name", "129 bytes"},
		msg(`"tools":[` + tool("a", "[]") + `]`):                                                             {"tools[0].function.parameters", "not an array"},
		msg(`"tools":[` + strings.Join(many, ",") + `]`):                                                     {"tools", "at most 128"},
		msg(`"tools":[` + tool("a", `{"x":"`+strings.Repeat("x", MaxToolBytes)+`"}`) + `]`):                  {"tools", "shorter"},
		msg(`"tool_choice":"required"`):                                                                      {"tool_choice", "needs tools"},
		msg(twoTools + `,"tool_choice":"maybe"`):                                                             {"tool_choice", "unknown"},
		msg(twoTools + `,"tool_choice":5`):                                                                   {"tool_choice", "auto, none, required"},
		msg(twoTools + `,"tool_choice":{"type":"function"}`):                                                 {"tool_choice", "auto, none, required"},
		msg(twoTools + `,"tool_choice":{"type":"function","function":{"name":"z"}}`):                         {"tool_choice", `"z"`},
		msg(twoTools + `,"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[]}}`): {"tool_choice", "allows no tool"},
		msg(twoTools + `,"functions":[{"name":"f"}]`):                                                        {"functions", "exclude"},
		msg(`"functions":[{"name":"f"},{"name":"f"}]`):                                                       {"functions[1].name", "twice"},
		msg(`"functions":[{"name":"f"}],"function_call":{"name":"g"}`):                                       {"function_call", `"g"`},
		msg(`"reasoning_effort":"much"`):                                                                     {"reasoning_effort", "one of none"},
		message(`{"role":"tool","content":"r"}`):                                                             {"messages[1].tool_call_id", "missing"},
		message(`{"role":"function","name":"f","content":"r"}`):                                              {"messages[1].tool_call_id", "missing"},
		message(`{"role":"user"}`):                                                                           {"messages[1].content", "missing"},
		message(`{"role":"user","content":null}`):                                                            {"messages[1].content", "missing"},
		message(`{"role":"user","content":[]}`):                                                              {"messages[1].content", "missing"},
		message(`{"role":"assistant"}`):                                                                      {"messages[1].content", "missing"},
		message(`{"role":"user","content":[{"type":"text","text":"a"},null]}`):                               {"messages[1].content[1]", "neither"},
		message(`{"role":"user","content":[{"type":"text"}]}`):                                               {"messages[1].content[0]", "neither"},
		message(`{"role":"user","content":"x","tool_calls":[{"function":{"name":"f"}}]}`):                    {"messages[1].tool_calls", "only messages of the assistant"},
		message(`{"role":"assistant","tool_calls":[{"id":"1","function":{"arguments":"{}"}}]}`):              {"messages[1].tool_calls[0].function.name", "missing"},
		message(`{"role":"assistant","tool_calls":[{"type":"custom","function":{"name":"f"}}]}`):             {"messages[1].tool_calls[0].type", "not supported"},
		message(`{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":5}}]}`):               {"messages.tool_calls.function", "a string"},
		message(`{"role":"assistant","tool_calls":[` + strings.Repeat(`{"function":{"name":"f"}},`, MaxToolCalls) + `{"function":{"name":"f"}}]}`): {"messages[1].tool_calls", "at most 256"},
	} {
		_, err := DecodeChat([]byte(body))
		e, ok := errors.AsType[*Error](err)
		must.True(t, ok, must.Sprint(body[:min(len(body), 200)]))
		must.Eq(t, http.StatusBadRequest, e.Status)
		must.StrContains(t, e.Message, c.says)
		must.NotNil(t, e.Param, must.Sprint(e.Message))
		must.Eq(t, c.param, *e.Param, must.Sprint(e.Message))
	}
}

// Older and sloppier forms of histories are converted into the current form.
func TestDecodeHistories(t *testing.T) {
	t.Parallel()
	r, err := DecodeChat([]byte(`{"messages":[
		{"role":"user","content":[{"text":"a"},{"type":"input_text","text":"b"},{"type":"text","text":""}]},
		{"role":"assistant","content":"","reasoning_content":"hm","tool_calls":[{"id":"c1","index":0,"function":{"name":"f","arguments":{"a": [1]}}}]},
		{"role":"tool","tool_call_id":"c1","content":""},
		{"role":"assistant","function_call":{"name":"g","arguments":"{}"},"content":null,"reasoning":"so"},
		{"role":"function","name":"g","content":"r"},
		{"role":"assistant","tool_calls":[{"id":"c2","type":"function","function":{"name":"f"}}],"content":[]},
		{"role":"assistant","content":""}]}`))
	must.NoError(t, err)
	text, other := r.Messages[0].Content.PlainText()
	must.Eq(t, "ab", text)
	must.Eq(t, "", other)
	must.Eq(t, []ToolCall{{ID: "c1", Type: "function", Function: ToolFunction{Name: "f", Arguments: `{"a": [1]}`}}}, r.Messages[1].ToolCalls)
	must.Eq(t, "hm", r.Messages[1].ReasoningContent)
	must.Eq(t, []ToolCall{{ID: "call_3", Type: "function", Function: ToolFunction{Name: "g", Arguments: `{}`}}}, r.Messages[3].ToolCalls)
	must.Eq(t, "so", r.Messages[3].ReasoningContent)
	must.Nil(t, r.Messages[3].FunctionCall)
	must.Eq(t, "tool", r.Messages[4].Role)
	must.Eq(t, "call_3", r.Messages[4].ToolCallID)
	must.Eq(t, "", r.Messages[5].ToolCalls[0].Function.Arguments)
}
