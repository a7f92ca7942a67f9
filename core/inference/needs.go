package inference

import (
	"bytes"
	"errors"
	"slices"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// wants are the features that a request's body asks for.
type wants uint8

const (
	wantsTools wants = 1 << iota
	wantsJSON
	wantsForm // of the answer, as llama.cpp and vLLM call it
	wantsLogprobs
	wantsVision
	wantsAudio
	wantsInfill // the suffix of a completion
)

// features maps each feature to the capability that it needs and the field that asks for it.
var features = [...]struct {
	wants        wants
	need, param  string
	ofCompletion bool // /v1/completions has the field as well
}{
	{wantsTools, core.CapabilityTools, "tools", false},
	{wantsForm, core.CapabilityJSONSchema, "structured_outputs", false},
	{wantsJSON, core.CapabilityJSONSchema, "response_format", false},
	{wantsLogprobs, core.CapabilityLogprobs, "logprobs", true},
	{wantsVision, core.CapabilityVision, "messages", false},
	{wantsAudio, core.CapabilityAudio, "messages", false},
	{wantsInfill, core.CapabilityInfill, "suffix", true},
}

// wantsOf returns what a field of a request asks for. value is valid JSON.
func wantsOf(key string, value []byte) wants {
	switch key {
	case "tools", "functions":
		if value[0] == '[' && !emptyList(value) {
			return wantsTools
		}
	case "response_format":
		if typ := memberText(value, "type"); typ != "" && typ != "text" {
			return wantsJSON
		}
	case "json_schema", "grammar", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs":
		// Workers without JSON schema support ignore these fields as well.
		if value[0] != 'n' && string(value) != `""` {
			return wantsForm
		}
	case "logprobs": // a boolean in a chat, a number in a completion
		if value[0] != 'n' && value[0] != 'f' {
			return wantsLogprobs
		}
	case "suffix":
		if value[0] == '"' && string(value) != `""` {
			return wantsInfill
		}
	case "messages":
		var w wants
		if hasType(value, `"image_url"`) {
			w |= wantsVision
		}
		if hasType(value, `"input_audio"`) {
			w |= wantsAudio
		}
		return w
	}
	return 0
}

func emptyList(value []byte) bool {
	s := scanner{b: value, i: 1}
	s.space()
	return s.take(']')
}

// memberText returns the text of an object's member; empty if value is not an object or the member
// is not a string.
func memberText(value []byte, name string) string {
	s := scanner{b: value}
	if value[0] != '{' {
		return ""
	}
	text := ""
	_ = s.object(func(rawKey []byte) (bool, error) { // value was scanned before
		key, err := unquote(rawKey)
		s.space()
		start := s.i
		if !s.value(0) {
			return false, nil
		}
		if found := s.b[start:s.i]; err == nil && string(key) == name && found[0] == '"' {
			if plain, err := unquote(found); err == nil {
				text = string(plain)
			}
		}
		return true, nil
	})
	return text
}

// hasType reports whether a value contains an object whose member "type" is the quoted text. Quotes
// within strings are escaped, so that no string matches.
func hasType(value []byte, quoted string) bool {
	for rest := value; ; {
		i := bytes.Index(rest, []byte(quoted))
		if i < 0 {
			return false
		}
		before, ok := bytes.CutSuffix(bytes.TrimRight(rest[:i], " \t\r\n"), []byte(":"))
		if ok && bytes.HasSuffix(bytes.TrimRight(before, " \t\r\n"), []byte(`"type"`)) {
			return true
		}
		rest = rest[i+len(quoted):]
	}
}

// needs returns the capabilities that a worker must have to answer the request on a path.
func (f facts) needs(path string) []string {
	var list []string
	completion := false
	switch path {
	case "/v1/chat/completions":
		list = append(list, core.CapabilityChat)
		f.wants &^= wantsInfill // not a field of chats
	case "/infill":
		return []string{core.CapabilityInfill}
	case "/v1/completions", "/completion":
		list, completion = append(list, core.CapabilityCompletions), true
	case "/v1/embeddings":
		return []string{core.CapabilityEmbeddings}
	case "/v1/rerank":
		return []string{core.CapabilityRerank}
	case "/tokenize", "/detokenize":
		return []string{core.CapabilityTokenize}
	case "/apply-template", "/v1/chat/completions/input_tokens":
		return []string{core.CapabilityChat, core.CapabilityTokenize}
	default:
		if m, ok := MediaOf(path); ok {
			return []string{m.Need}
		}
		return nil
	}
	for _, x := range features {
		if f.wants&x.wants != 0 && (x.ofCompletion || !completion) && !slices.Contains(list, x.need) {
			list = append(list, x.need)
		}
	}
	return list
}

func isUnable(err error) bool {
	_, ok := errors.AsType[*Unable](err)
	return ok
}

// unable returns an error that names the field asking for what no worker can do.
func unable(err error) error {
	u, ok := errors.AsType[*Unable](err)
	if !ok {
		return err
	}
	param := "model"
	if isMedia(u.Need) {
		return &FieldError{Param: param, Code: openai.CodeNotSupported, Err: core.Errorf(core.Unsupported, "%s", u.Error()).Hint(
			"Serve a model for it with a worker type that can, such as a server of your own behind the worker type openai.")}
	}
	for _, x := range features {
		if x.need == u.Need {
			param = x.param
		}
	}
	hint := "Leave it out, or serve the model with a worker type that can: GET /v1/models shows the capabilities of each model's workers."
	switch u.Need {
	case core.CapabilityChat:
		hint = "Serve a model that chats. One without a chat template takes a whole prompt at /v1/completions; one that only reads, texts at /v1/embeddings or /v1/rerank."
	case core.CapabilityCompletions:
		hint = "Serve a model that writes. One that only reads takes texts at /v1/embeddings or /v1/rerank."
	case core.CapabilityEmbeddings:
		hint = "Serve a model that is made for embeddings, or set pooling in the worker type's configuration."
	case core.CapabilityInfill:
		hint = "Serve a model that was trained to fill gaps, such as one for code, or leave suffix out."
	case core.CapabilityRerank:
		hint = "Serve a model that is made for reranking."
	}
	return &FieldError{Param: param, Code: openai.CodeNotSupported, Err: core.WithHint(u.Unwrap(), "%s", hint)}
}
