package core

import (
	"encoding/json"
	"slices"
	"strings"
)

// The capabilities of a worker that a request can need. Package sdk/worker uses the same names;
// plugins may define others.
const (
	CapabilityChat        = "chat"
	CapabilityCompletions = "completions"
	CapabilityEmbeddings  = "embeddings"
	CapabilityRerank      = "rerank"
	CapabilityTokenize    = "tokenize"
	CapabilityInfill      = "infill"
	CapabilityTools       = "tools"
	CapabilityJSONSchema  = "json_schema"
	CapabilityLogprobs    = "logprobs"
	CapabilityReasoning   = "reasoning"
	CapabilityVision      = "vision"
	CapabilityAudio       = "audio"

	CapabilityTranscription = "transcription"
	CapabilityTranslation   = "translation"
	CapabilitySpeech        = "speech"
	CapabilityImages        = "images"
	CapabilityImageEdit     = "image_edit"
	CapabilityModeration    = "moderation"
)

// Bounds of a worker's capabilities.
const (
	MaxCapabilities    = 32
	maxCapabilityBytes = 32
)

// Capabilities are what a worker can do with its model: sorted unique names separated by spaces, so
// that workers can be compared. In JSON they are a list. CapabilitiesOf makes them. Empty: the
// worker does not report any, and may be asked for anything.
type Capabilities string

// CapabilitiesOf returns the valid names in a list, at most MaxCapabilities of them.
func CapabilitiesOf(list []string) Capabilities {
	names := make([]string, 0, min(len(list), MaxCapabilities))
	for _, name := range list {
		if len(names) == MaxCapabilities {
			break
		}
		if ValidCapability(name) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return Capabilities(strings.Join(names, " "))
}

// ValidCapability reports whether name may be the name of a capability: lower-case letters, digits
// and _, at most 32 characters.
func ValidCapability(name string) bool {
	return name != "" && len(name) <= maxCapabilityBytes && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// List returns the names; nil for none.
func (c Capabilities) List() []string {
	if c == "" {
		return nil
	}
	return strings.Split(string(c), " ")
}

// With returns the union of c and o.
func (c Capabilities) With(o Capabilities) Capabilities {
	if o == "" || c == o {
		return c
	}
	return CapabilitiesOf(append(c.List(), o.List()...))
}

// Has reports whether name is among the capabilities. It does not allocate.
func (c Capabilities) Has(name string) bool {
	for rest := string(c); rest != ""; {
		var next string
		if next, rest, _ = strings.Cut(rest, " "); next == name {
			return true
		}
	}
	return false
}

// Lacks returns the first of needs that is missing; empty if none is, or if no capabilities are
// reported.
func (c Capabilities) Lacks(needs []string) string {
	if c == "" {
		return ""
	}
	for _, need := range needs {
		if !c.Has(need) {
			return need
		}
	}
	return ""
}

// MarshalJSON encodes the names as a list.
func (c Capabilities) MarshalJSON() ([]byte, error) {
	list := c.List()
	if list == nil {
		list = []string{}
	}
	return json.Marshal(list)
}

// UnmarshalJSON decodes a list of names.
func (c *Capabilities) UnmarshalJSON(b []byte) error {
	var list []string
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	*c = CapabilitiesOf(list)
	return nil
}
