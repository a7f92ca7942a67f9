package dialogue

import (
	"encoding/json"
	"strings"
)

// Describe returns text that describes the tools and how to call them, for chat templates without
// tool support. The calls have the format that Recognise returns for such templates.
func Describe(tools []Tool) string {
	var b strings.Builder
	b.WriteString("You can call these functions. Each line describes one, with the JSON Schema of its arguments:\n")
	for _, t := range tools {
		line := struct {
			Name        string          `json:"name"`
			Description string          `json:"description,omitempty"`
			Parameters  json.RawMessage `json:"parameters"`
		}{t.Name, t.Description, t.Parameters}
		if len(t.Parameters) == 0 {
			line.Parameters = json.RawMessage(empty)
		}
		text, err := json.Marshal(line)
		if err != nil { // the schema is not JSON
			continue
		}
		b.Write(text)
		b.WriteByte('\n')
	}
	b.WriteString(`To call a function, answer with nothing but {"name": "…", "arguments": {…}}, one such line for each call. Otherwise answer in plain text.`)
	return b.String()
}

// WriteCall returns a call in the format that Describe explains. arguments is JSON.
func WriteCall(name, arguments string) string {
	if !json.Valid([]byte(arguments)) {
		arguments = "{}"
	}
	return `{"name": ` + string(appendQuoted(nil, name)) + `, "arguments": ` + arguments + `}`
}
