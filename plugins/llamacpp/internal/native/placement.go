package native

import (
	"errors"
	"fmt"
	"slices"

	"github.com/hybridgroup/yzma/pkg/llama"
)

const (
	// allLayers is more than any model has.
	allLayers = 9999
	// splitRoom is how many numbers the engine reads of a split, whatever devices there are.
	splitRoom = 64
)

// Placement says where the parts of a model lie.
type Placement struct {
	Devices         []Device // none: the processor; several share the model
	GPULayers       int      // layers that go to the devices; negative: all
	SplitMode       string   // one of SplitModes, for several devices; empty: none
	TensorSplit     []float32
	CPUExpertLayers int    // layers, from the first one on, whose experts stay with the processor; negative: all
	LoadMode        string // one of LoadModes; empty: the engine's choice
}

// LoadModes are the values of Placement.LoadMode, the default first.
func LoadModes() []string {
	return []string{"auto", "mmap", "none", "mlock", "mmap+mlock", "direct_io"}
}

// SplitModes are the values of Placement.SplitMode, the default first.
func SplitModes() []string { return []string{"layer", "row", "none"} }

// loadMode returns the engine's number of a mode.
func loadMode(name string) llama.LoadMode {
	switch name {
	case "mmap":
		return llama.LoadModeMmap
	case "none":
		return llama.LoadModeNone
	case "mlock":
		return llama.LoadModeMlock
	case "mmap+mlock":
		return llama.LoadModeMmapMlock
	case "direct_io":
		return llama.LoadModeDirectIO
	}
	return llama.LoadModeAuto
}

// held is memory that the engine reads while it loads a model.
type held struct {
	devices   []llama.GGMLBackendDevice
	split     []float32
	overrides []llama.TensorBuftOverride
}

// apply fills in the engine's parameters. What it returns must be kept alive until the model is
// loaded.
func (p Placement) apply(params *llama.ModelParams) (held, error) {
	var h held
	for _, d := range p.Devices {
		h.devices = append(h.devices, d.handle)
	}
	if len(h.devices) == 0 { // no graphics device: the processor is always there
		h.devices = []llama.GGMLBackendDevice{0}
	}
	h.devices = append(h.devices, 0) // the end
	if err := params.SetDevices(h.devices); err != nil {
		return h, err
	}
	if p.LoadMode != "" && p.LoadMode != LoadModes()[0] { // what the engine's own default says stays
		params.LoadMode = loadMode(p.LoadMode)
	}
	if len(p.Devices) == 0 {
		params.NGpuLayers = 0
		return h, nil
	}
	params.NGpuLayers = int32(p.GPULayers)
	if p.GPULayers < 0 {
		params.NGpuLayers = allLayers
	}
	params.SplitMode = llama.SplitModeNone
	if len(p.Devices) > 1 {
		switch p.SplitMode {
		case "layer":
			params.SplitMode = llama.SplitModeLayer
		case "row":
			params.SplitMode = llama.SplitModeRow
		case "none", "":
		default:
			return h, fmt.Errorf("unknown split mode %q", p.SplitMode)
		}
		if len(p.TensorSplit) > splitRoom {
			return h, errors.New("too many parts of a split")
		}
		if len(p.TensorSplit) > 0 {
			h.split = append(slices.Clone(p.TensorSplit), make([]float32, splitRoom-len(p.TensorSplit))...)
			params.TensorSplit = &h.split[0]
		}
	}
	switch n := p.CPUExpertLayers; {
	case n < 0:
		h.overrides = []llama.TensorBuftOverride{llama.NewTensorBuftAllFFNExprsOverride()}
	case n > 0:
		for layer := range n {
			h.overrides = append(h.overrides, llama.NewTensorBuftBlockOverride(layer))
		}
	}
	if len(h.overrides) > 0 {
		h.overrides = append(h.overrides, llama.TensorBuftOverride{}) // the end
	}
	return h, params.SetTensorBufOverrides(h.overrides)
}
