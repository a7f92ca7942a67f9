package llamacpp

import (
	"fmt"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/native"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// mostDevices bounds the devices that can share a model.
const mostDevices = 16

// checkDevices validates the multi-device settings.
func checkDevices(f Flavour, c config) (diags sdk.Diagnostics) {
	if f == CPU {
		return nil
	}
	wrong := func(path, detail string, args ...any) {
		diags = append(diags, sdk.Diagnostic{Summary: "Bad devices", Detail: fmt.Sprintf(detail, args...), Path: []any{path}})
	}
	if len(c.Devices) > mostDevices {
		wrong("devices", "devices names %d devices. A model can be shared by %d at most.", len(c.Devices), mostDevices)
	}
	seen := map[string]bool{}
	for _, id := range c.Devices {
		if seen[id] {
			wrong("devices", "devices names %q twice.", id)
		}
		seen[id] = true
	}
	sum := 0.0
	for _, part := range c.TensorSplit {
		if !(part >= 0 && part <= 1e6) {
			wrong("tensor_split", "tensor_split has %g. It takes numbers from 0 to a million.", part)
			return diags
		}
		sum += part
	}
	switch {
	case len(c.TensorSplit) == 0:
	case len(c.TensorSplit) != len(c.Devices):
		wrong("tensor_split", "tensor_split has %d numbers and devices has %d entries. It takes a number for each device.", len(c.TensorSplit), len(c.Devices))
	case sum == 0:
		wrong("tensor_split", "tensor_split gives nothing to any device.")
	}
	return diags
}

// placement returns the binding's placement of a model on the devices that share it. devices is
// empty for CPU.
func (c config) placement(devices []native.Device) native.Placement {
	p := native.Placement{Devices: devices, GPULayers: c.GPULayers, CPUExpertLayers: c.CPUExperts, LoadMode: c.LoadMode}
	if len(devices) > 1 {
		p.SplitMode = c.SplitMode
		for _, part := range c.TensorSplit {
			p.TensorSplit = append(p.TensorSplit, float32(part))
		}
	}
	return p
}
