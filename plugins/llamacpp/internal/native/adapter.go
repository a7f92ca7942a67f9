package native

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/hybridgroup/yzma/pkg/llama"

	"github.com/rbee-project/rbee/plugins/sdk"
)

// LoadAdapter loads a LoRA adapter, which the model owns. Context.Adapt activates it. Load adapters
// before the model is used.
func (m *Model) LoadAdapter(path string) error {
	theLibrary.logs.forget()
	adapter, err := llama.AdapterLoraInit(m.handle, path)
	if err == nil && adapter == 0 {
		err = fmt.Errorf("the engine cannot use it with this model%s", theLibrary.logs.explain())
	}
	if err != nil {
		err = fmt.Errorf("load adapter %s: %w: %w", path, err, sdk.ErrInvalid)
		return sdk.WithHint(err, "Take an adapter in GGUF format that was trained for this very model, or leave it out of lora.")
	}
	m.adapters = append(m.adapters, adapter)
	return nil
}

// Scales encodes the scales of a model's adapters, in the order in which they were loaded, for
// Context.Adapt.
func Scales(list []float64) string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = strconv.FormatFloat(v, 'g', -1, 32)
	}
	return strings.Join(out, ",")
}
