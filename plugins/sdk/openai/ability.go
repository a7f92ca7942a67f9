package openai

import "slices"

// CheckAbility rejects request features that the worker does not support. can lists the worker's
// capabilities, from its Status: see package worker. Every error is an *Error of status 400 that
// names the field.
func (r *ChatRequest) CheckAbility(can []string) error {
	lacks := func(name string) bool { return !slices.Contains(can, name) }
	switch {
	case len(r.Tools) > 0 && lacks("tools"):
		return NotSupported("tools", "tools are not supported by this worker; leave them out")
	case len(r.Functions) > 0 && lacks("tools"):
		return NotSupported("functions", "functions are not supported by this worker; leave them out")
	case r.LogProbs != nil && *r.LogProbs && lacks("logprobs"):
		return NotSupported("logprobs", "logprobs are not supported by this worker; leave them out")
	}
	if err := checkShape(r.Shape, can); err != nil {
		return err
	}
	for _, m := range r.Messages {
		for _, p := range m.Content.Parts {
			if p.Type == "image_url" && lacks("vision") || p.Type == "input_audio" && lacks("audio") {
				return NotSupported("messages", "parts of type %s are not supported by this worker; send text", p.Type)
			}
		}
	}
	return nil
}

// CheckAbility does the same as ChatRequest.CheckAbility, for a completion.
func (r *CompletionRequest) CheckAbility(can []string) error {
	if r.LogProbs != nil && !slices.Contains(can, "logprobs") {
		return NotSupported("logprobs", "logprobs are not supported by this worker; leave them out")
	}
	return checkShape(r.Shape, can)
}

// checkShape rejects an answer shape that the worker cannot enforce.
func checkShape(shape func() (Shape, error), can []string) error {
	s, err := shape()
	if err == nil && s.Kind != "" && !slices.Contains(can, "json_schema") {
		err = NotSupported(s.Param, "%s is not supported by this worker; describe the form of the answer in the prompt", s.Path)
	}
	return err
}
