package dialogue

import (
	"encoding/json"
	"strings"
)

// Describe returns the text that tells a model of its tools and of how to call them, for chat
// templates that know of none. Its calls are those of the format that Recognise returns for such
// templates.
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
		if err != nil { // a schema that is not JSON
			continue
		}
		b.Write(text)
		b.WriteByte('\n')
	}
	b.WriteString(`To call a function, answer with nothing but {"name": "…", "arguments": {…}}, one such line for each call. Otherwise answer in plain text.`)
	return b.String()
}

// WriteCall returns a call as a model writes it that was told by Describe. arguments is JSON.
func WriteCall(name, arguments string) string {
	if !json.Valid([]byte(arguments)) {
		arguments = "{}"
	}
	return `{"name": ` + string(appendQuoted(nil, name)) + `, "arguments": ` + arguments + `}`
}
