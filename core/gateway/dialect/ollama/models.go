package ollama

import (
	"fmt"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

// Version is the version of Ollama's API that this package implements: clients compare it.
const Version = "0.12.0"

// Tags is the answer of GET /api/tags.
type Tags struct {
	Models []Tag `json:"models"`
}

// Tag is one model of Tags and Running.
type Tag struct {
	Name       string    `json:"name"`
	Model      string    `json:"model"`
	ModifiedAt time.Time `json:"modified_at,omitzero"`
	Size       int64     `json:"size"` // bytes
	Digest     string    `json:"digest"`
	Details    Details   `json:"details"`

	// Only in Running.
	ExpiresAt     time.Time `json:"expires_at,omitzero"`
	SizeVRAM      *int64    `json:"size_vram,omitempty"` // bytes
	ContextLength int       `json:"context_length,omitempty"`
}

// Details describes a model.
type Details struct {
	ParentModel       string   `json:"parent_model"`
	Format            string   `json:"format"`
	Family            string   `json:"family"`
	Families          []string `json:"families"`
	ParameterSize     string   `json:"parameter_size"`
	QuantizationLevel string   `json:"quantization_level"`
}

// Show is the answer of POST /api/show.
type Show struct {
	License      string         `json:"license,omitempty"`
	Modelfile    string         `json:"modelfile"`
	Parameters   string         `json:"parameters"`
	Template     string         `json:"template"`
	Details      Details        `json:"details"`
	ModelInfo    map[string]any `json:"model_info"`
	Capabilities []string       `json:"capabilities"`
	ModifiedAt   time.Time      `json:"modified_at,omitzero"`
}

// TagsOf lists the models that need no download, each followed by its aliases: a copy looks like
// any other model here.
func TagsOf(models []core.Model, aliases []core.Alias) Tags {
	out := Tags{Models: []Tag{}}
	for _, m := range models {
		if m.State == core.ModelOffered {
			continue
		}
		out.Models = append(out.Models, tagOf(m))
		for _, a := range aliases {
			if a.Model == m.ID {
				t := tagOf(m)
				t.Name, t.Model = a.Name, a.Name
				out.Models = append(out.Models, t)
			}
		}
	}
	return out
}

// RunningOf lists the models that workers have loaded. A worker without an unload time stays until
// it is stopped; as clients expect a time, its ExpiresAt is a hundred years from now.
func RunningOf(workers []core.Worker, models []core.Model, now time.Time) Tags {
	byID := map[string]core.Model{}
	for _, m := range models {
		byID[m.ID] = m
	}
	out := Tags{Models: []Tag{}}
	seen := map[string]int{}
	for _, w := range workers {
		if w.State != core.WorkerReady {
			continue
		}
		expires := now.AddDate(100, 0, 0) // no unload time
		if at, ok := w.Load.UnloadsAt(); ok {
			expires = at
		}
		if i, ok := seen[w.Model]; ok { // replicas count as one model
			out.Models[i].ContextLength = min(out.Models[i].ContextLength, w.ContextTokens)
			if expires.After(out.Models[i].ExpiresAt) {
				out.Models[i].ExpiresAt = expires
			}
			continue
		}
		seen[w.Model] = len(out.Models)
		m, ok := byID[w.Model]
		if !ok {
			m = core.Model{ID: w.Model, Digest: w.ModelDigest}
		}
		t := tagOf(m)
		onDevice := int64(0)
		if w.Device != "cpu" {
			onDevice = m.SizeBytes
		}
		t.ExpiresAt, t.SizeVRAM, t.ContextLength, t.ModifiedAt = expires, &onDevice, w.ContextTokens, time.Time{}
		out.Models = append(out.Models, t)
	}
	return out
}

func tagOf(m core.Model) Tag {
	return Tag{Name: m.ID, Model: m.ID, ModifiedAt: m.CreatedAt, Size: m.SizeBytes, Digest: strings.TrimPrefix(m.Digest, "sha256:"), Details: detailsOf(m)}
}

func detailsOf(m core.Model) Details {
	d := Details{Format: "gguf", Family: m.Architecture, Families: []string{}, QuantizationLevel: m.Quantization}
	if m.Architecture != "" {
		d.Families = append(d.Families, m.Architecture)
	}
	switch n := float64(m.Parameters); {
	case n >= 1e9:
		d.ParameterSize = fmt.Sprintf("%.1fB", n/1e9)
	case n >= 1e6:
		d.ParameterSize = fmt.Sprintf("%.2fM", n/1e6)
	case n > 0:
		d.ParameterSize = fmt.Sprintf("%.0fK", n/1e3)
	}
	return d
}

// ShowOf describes one model.
func ShowOf(m core.Model) Show {
	s := Show{License: m.License, Details: detailsOf(m), ModelInfo: map[string]any{}, Capabilities: capabilitiesOf(m), ModifiedAt: m.CreatedAt}
	s.Modelfile = "FROM " + m.ID + "\n"
	set := func(key string, v any, known bool) {
		if known {
			s.ModelInfo[key] = v
		}
	}
	arch := m.Architecture
	set("general.architecture", arch, arch != "")
	set("general.parameter_count", m.Parameters, m.Parameters > 0)
	set(arch+".context_length", m.ContextTokens, arch != "" && m.ContextTokens > 0)
	if f := m.Facts; f != nil && arch != "" {
		set("general.basename", f.Name, f.Name != "")
		set(arch+".block_count", f.Layers, f.Layers > 0)
		set(arch+".embedding_length", f.Embedding, f.Embedding > 0)
		set(arch+".feed_forward_length", f.FeedForward, f.FeedForward > 0)
		set(arch+".attention.head_count", f.Heads, f.Heads > 0)
		set(arch+".attention.head_count_kv", f.KVHeads, f.KVHeads > 0)
	}
	return s
}

// capabilitiesOf returns a model's capabilities in Ollama's terms. While no worker runs, the file
// decides: a model with a chat template may support tools.
func capabilitiesOf(m core.Model) []string {
	out := []string{}
	for _, c := range []struct{ ours, theirs string }{
		{core.CapabilityCompletions, "completion"},
		{core.CapabilityTools, "tools"},
		{core.CapabilityInfill, "insert"},
		{core.CapabilityVision, "vision"},
		{core.CapabilityReasoning, "thinking"},
		{core.CapabilityEmbeddings, "embedding"},
	} {
		if m.Capabilities.Has(c.ours) {
			out = append(out, c.theirs)
		}
	}
	switch {
	case m.Capabilities != "":
		return out
	case m.Facts != nil && m.Facts.ChatTemplate:
		return []string{"completion", "tools"}
	}
	return []string{"completion"}
}
