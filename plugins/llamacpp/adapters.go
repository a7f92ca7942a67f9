package llamacpp

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/native"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

const (
	mostAdapters = 64
	mostScale    = 100 // the absolute value of a scale
)

// adapter is a LoRA adapter loaded beside a model.
type adapter struct {
	name  string // the file name without .gguf
	path  string
	scale float64 // used when a request sets none
}

// adapters lists a model's adapters; an adapter's index is its id.
type adapters []adapter

// parseAdapters parses the setting lora: a list of files, each optionally followed by a colon and a
// scale.
func parseAdapters(list []string) (adapters, error) {
	if len(list) > mostAdapters {
		return nil, fmt.Errorf("lora names %d adapters; a worker takes %d", len(list), mostAdapters)
	}
	var out adapters
	for _, text := range list {
		a := adapter{path: text, scale: 1}
		if i := strings.LastIndexByte(text, ':'); i >= 0 {
			scale, err := strconv.ParseFloat(text[i+1:], 64)
			if err != nil || !(scale >= -mostScale && scale <= mostScale) {
				return nil, fmt.Errorf("lora has %q: what follows the colon must be a scale between %d and %d", text, -mostScale, mostScale)
			}
			a.path, a.scale = text[:i], scale
		}
		if !filepath.IsAbs(a.path) {
			return nil, fmt.Errorf("lora has %q: it must be an absolute path", text)
		}
		a.name = strings.TrimSuffix(filepath.Base(a.path), ".gguf")
		if _, known := out.named(a.name); known {
			return nil, fmt.Errorf("lora has two adapters named %s; rename one file", a.name)
		}
		out = append(out, a)
	}
	return out, nil
}

func (list adapters) named(name string) (id int, ok bool) {
	for i, a := range list {
		if a.name == name {
			return i, true
		}
	}
	return 0, false
}

// load loads the adapters into a loaded model.
func (list adapters) load(m *native.Model) error {
	for _, a := range list {
		if err := m.LoadAdapter(a.path); err != nil {
			return err
		}
	}
	return nil
}

// chosen encodes the scales of the adapters that a request wants. Without a list the request gets
// the adapters that the worker was started with. With one it gets only those that it names, as in
// llama-server.
func (list adapters) chosen(asked *[]openai.LoRA) (string, error) {
	if len(list) == 0 && (asked == nil || len(*asked) == 0) {
		return "", nil
	}
	scales := make([]float64, len(list))
	if asked == nil {
		for i, a := range list {
			scales[i] = a.scale
		}
		return native.Scales(scales), nil
	}
	for _, one := range *asked {
		id, err := list.find(one)
		if err != nil {
			return "", err
		}
		if !(one.Scale >= -mostScale && one.Scale <= mostScale) {
			return "", openai.Invalid("lora", "the scale of a lora adapter must be between %d and %d, not %g", -mostScale, mostScale, one.Scale)
		}
		scales[id] = one.Scale
	}
	return native.Scales(scales), nil
}

func (list adapters) find(one openai.LoRA) (id int, err error) {
	switch {
	case one.Name == "" && one.ID == nil:
		return 0, openai.Invalid("lora", "each entry of lora must have the name or the id of an adapter")
	case one.Name != "":
		if id, ok := list.named(one.Name); ok {
			return id, nil
		}
	case *one.ID >= 0 && int64(*one.ID) < int64(len(list)):
		return int(*one.ID), nil
	}
	if len(list) == 0 {
		return 0, openai.Invalid("lora", "this worker has no lora adapters")
	}
	names := make([]string, len(list))
	for i, a := range list {
		names[i] = a.name
	}
	return 0, openai.Invalid("lora", "this worker has no such lora adapter; it has %s", strings.Join(names, ", "))
}

func (s *server) listAdapters() []openai.LoRAAdapter {
	list := []openai.LoRAAdapter{}
	for i, a := range s.adapters {
		list = append(list, openai.LoRAAdapter{ID: i, Name: a.name, Scale: a.scale})
	}
	return list
}
