package native

import (
	"errors"
	"fmt"
	"slices"

	"github.com/hybridgroup/yzma/pkg/llama"
)

const (
	// allLayers exceeds the number of layers of any model.
	allLayers = 9999
	// splitRoom is the number of split values that the engine reads, regardless of the number of
	// devices.
	splitRoom = 64
)

// Placement assigns the parts of a model to devices.
type Placement struct {
	Devices         []Device // empty: CPU; several share the model
	GPULayers       int      // layers on the devices; negative: all
	SplitMode       string   // one of SplitModes, with several devices; empty: none
	TensorSplit     []float32
	CPUExpertLayers int    // number of first layers whose experts stay on the CPU; negative: all
	LoadMode        string // one of LoadModes; empty: the engine's choice
}

// LoadModes returns the values of Placement.LoadMode, the default first.
func LoadModes() []string {
	return []string{"auto", "mmap", "none", "mlock", "mmap+mlock", "direct_io"}
}

// SplitModes returns the values of Placement.SplitMode, the default first.
func SplitModes() []string { return []string{"layer", "row", "none"} }

// loadMode returns the engine's number for a mode.
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

// held is memory that the engine reads while loading a model.
type held struct {
	devices   []llama.GGMLBackendDevice
	split     []float32
	overrides []llama.TensorBuftOverride
}

// apply sets the engine's parameters. The result must be kept alive until the model is loaded.
func (p Placement) apply(params *llama.ModelParams) (held, error) {
	var h held
	for _, d := range p.Devices {
		h.devices = append(h.devices, d.handle)
	}
	if len(h.devices) == 0 { // no GPU: the CPU is always present
		h.devices = []llama.GGMLBackendDevice{0}
	}
	h.devices = append(h.devices, 0) // terminator
	if err := params.SetDevices(h.devices); err != nil {
		return h, err
	}
	if p.LoadMode != "" && p.LoadMode != LoadModes()[0] { // keep the engine's own default
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
		h.overrides = append(h.overrides, llama.TensorBuftOverride{}) // terminator
	}
	return h, params.SetTensorBufOverrides(h.overrides)
}
