package forward

import (
	"bytes"
	"encoding/json"
)

// replaceModel returns a JSON object with the value of its top-level member "model" replaced, and
// every other byte unchanged. Anything but a JSON object is returned as it is, for the server to
// reject.
func replaceModel(body []byte, model string) []byte {
	name, err := json.Marshal(model)
	if err != nil {
		return body
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return body
	}
	var out []byte
	done := 0
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return body
		}
		var value json.RawMessage
		if d.Decode(&value) != nil {
			return body
		}
		if key != "model" {
			continue
		}
		end := int(d.InputOffset())
		out = append(append(out, body[done:end-len(value)]...), name...)
		done = end
	}
	if done == 0 {
		return body
	}
	return append(out, body[done:]...)
}
