package native

import (
	"testing"
	"unsafe"

	"github.com/hashicorp/go-hclog"
	"github.com/hybridgroup/yzma/pkg/llama"
	"github.com/shoenig/test/must"
)

// The multi-device settings are converted to the binding's parameters. This has not been tested on
// a GPU.
func TestPlacement(t *testing.T) {
	must.NoError(t, Load(engineDir(t), hclog.NewNullLogger()))
	two := []Device{{handle: 11}, {handle: 12}}
	var p llama.ModelParams
	h, err := Placement{Devices: two, GPULayers: -1, SplitMode: "row", TensorSplit: []float32{3, 1}, CPUExpertLayers: 2, LoadMode: "direct_io"}.apply(&p)
	must.NoError(t, err)
	must.Eq(t, []llama.GGMLBackendDevice{11, 12, 0}, h.devices)
	must.Eq(t, allLayers, int(p.NGpuLayers))
	must.Eq(t, llama.SplitModeRow, p.SplitMode)
	must.Eq(t, llama.LoadModeDirectIO, p.LoadMode)
	must.Eq(t, splitRoom, len(h.split))
	must.Eq(t, []float32{3, 1, 0}, unsafe.Slice(p.TensorSplit, 3))
	must.Len(t, 3, h.overrides)
	must.Nil(t, h.overrides[2].Pattern)
	must.NotEq(t, 0, p.TensorBuftOverrides)

	p = llama.ModelParams{LoadMode: llama.LoadModeMmap}
	h, err = Placement{Devices: two[:1], GPULayers: 7, CPUExpertLayers: -1, LoadMode: "auto"}.apply(&p)
	must.NoError(t, err)
	must.Eq(t, 7, int(p.NGpuLayers))
	must.Eq(t, llama.SplitModeNone, p.SplitMode)
	must.Eq(t, llama.LoadModeMmap, p.LoadMode)
	must.Nil(t, p.TensorSplit)
	must.Len(t, 2, h.overrides)

	p = llama.ModelParams{NGpuLayers: 5}
	h, err = Placement{}.apply(&p)
	must.NoError(t, err)
	must.Eq(t, []llama.GGMLBackendDevice{0, 0}, h.devices)
	must.Zero(t, p.NGpuLayers)

	_, err = Placement{Devices: two, SplitMode: "diagonal"}.apply(&p)
	must.ErrorContains(t, err, "unknown split mode")
}
