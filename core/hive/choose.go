package hive

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk"
)

const (
	// kindCPU is the kind of device that every machine has, and so the last choice.
	kindCPU = "cpu"
	// defaultContextTokens is the most a slot gets when no context is requested.
	defaultContextTokens = 4096
	// leastContextTokens is the least a slot gets: a chat needs at least this.
	leastContextTokens = 512
)

// typeView is a worker type as its probe found it.
type typeView struct {
	Name    string
	Problem string // why it cannot be used here; empty: it can be used
	Devices []core.Device
	// Formats and Architectures are what the type declares to serve; see sdk.Info.
	Formats, Architectures []string
	// ByName reports that its models have no files here; Models are those it offers.
	ByName bool
	Models []string
}

// serves reports whether the type declares to serve models of an architecture; empty: of any.
func (v typeView) serves(architecture string) bool {
	return slices.Contains(v.Formats, sdk.FormatGGUF) &&
		(architecture == "" || len(v.Architectures) == 0 || slices.Contains(v.Architectures, architecture))
}

// owns reports whether devices of that id or kind belong to the type by its name, even if other
// types report them as well.
func (v typeView) owns(device string) bool { return v.Name == deviceKind(device) }

func (v typeView) usable() bool {
	return v.Problem == "" && (len(v.Devices) == 0 || slices.ContainsFunc(v.Devices, func(d core.Device) bool { return d.Problem == "" }))
}

func (v typeView) has(device string) bool {
	return slices.ContainsFunc(v.Devices, func(d core.Device) bool { return d.ID == device || d.Kind == device })
}

func (v typeView) onlyCPU() bool {
	return !slices.ContainsFunc(v.Devices, func(d core.Device) bool { return d.Kind != kindCPU })
}

// chooseType picks the worker type for a spawn: the named one. Otherwise, among those that declare
// to serve models of the architecture (empty: not known yet): the one whose devices include the
// device, preferring the one with its kind's name; else the first that can use something better
// than the CPU; else the first that works. Errors: Invalid, NotFound, Unsupported, each with the
// available choices.
func chooseType(types []typeView, wantType, wantDevice, architecture string) (string, error) {
	const what = "choose worker type"
	names := make([]string, 0, len(types))
	for _, v := range types {
		names = append(names, v.Name)
	}
	there := "Worker types of this hive: " + strings.Join(names, ", ") + "."
	if len(types) == 0 {
		return "", core.Errorf(core.Unsupported, "%s: this hive has no worker type", what).Hint(
			"Put worker plugins (rbee-worker-…) into the plugin folder and restart the agent.")
	}
	if wantType != "" {
		i := slices.IndexFunc(types, func(v typeView) bool { return v.Name == wantType })
		if i < 0 {
			return "", core.Errorf(core.NotFound, "%s: this hive has no worker type %q", what, wantType).Hint("%s", there)
		}
		if p := types[i].Problem; p != "" {
			return "", unsupported(what, wantType, p)
		}
		return wantType, nil
	}
	if wantDevice != "" {
		var problem error
		ordered := slices.Clone(types)
		slices.SortStableFunc(ordered, func(a, b typeView) int {
			switch {
			case a.owns(wantDevice) == b.owns(wantDevice):
				return 0
			case a.owns(wantDevice):
				return -1
			}
			return 1
		})
		for _, v := range ordered {
			// A type that found no device at all is still known by its name: cuda for cuda:0.
			if !v.has(wantDevice) && v.Name != deviceKind(wantDevice) {
				continue
			}
			switch {
			case v.Problem == "" && v.serves(architecture):
				return v.Name, nil
			case problem != nil:
			case v.Problem == "":
				problem = unasked(v.Name, architecture)
			default:
				problem = unsupported(what, v.Name, v.Problem)
			}
		}
		if problem != nil {
			return "", problem
		}
		var devices []string
		for _, v := range types {
			for _, d := range v.Devices {
				devices = append(devices, d.ID)
			}
		}
		slices.Sort(devices)
		return "", core.Errorf(core.NotFound, "%s: this hive has no device %q", what, wantDevice).Hint(
			"Devices of this hive: %s.", strings.Join(slices.Compact(devices), ", "))
	}
	for _, better := range []bool{true, false} {
		for _, v := range types {
			if v.usable() && v.serves(architecture) && (!better || !v.onlyCPU()) {
				return v.Name, nil
			}
		}
	}
	var problems []string
	for _, v := range types {
		if v.usable() {
			return "", unasked(v.Name, architecture)
		}
		problems = append(problems, v.Name+": "+v.Problem)
	}
	return "", core.Errorf(core.Unsupported, "%s: no worker type of this hive can be used: %s", what, strings.Join(problems, "; "))
}

// unasked explains that a type works, and why it is not chosen by default.
func unasked(name, architecture string) error {
	err := core.Errorf(core.Unsupported, "choose worker type: worker type %s does not say that it serves %s", name, cmp.Or(architecture, "models of this kind"))
	return core.WithHint(err, "Name it to use it all the same: --type %s.", name)
}

func unsupported(what, name, problem string) error {
	return core.Errorf(core.Unsupported, "%s: worker type %s cannot be used here: %s", what, name, problem)
}

func deviceKind(device string) string {
	kind, _, _ := strings.Cut(device, ":")
	return kind
}

// chooseDevice picks a device of a worker type: the one with the id, else one of the named kind,
// else any, preferring the most free memory. Errors: NotFound, Unsupported.
func chooseDevice(devices []core.Device, want string) (core.Device, error) {
	const what = "choose device"
	var best *core.Device
	var problem error
	ids := make([]string, 0, len(devices))
	for _, d := range devices {
		ids = append(ids, d.ID)
		if want != "" && want != d.ID && want != d.Kind {
			continue
		}
		if d.Problem != "" {
			problem = core.Errorf(core.Unsupported, "%s: device %s cannot be used: %s", what, d.ID, d.Problem)
			continue
		}
		if best == nil || d.ID == want || (best.ID != want && d.FreeBytes > best.FreeBytes) {
			best = new(d)
		}
	}
	switch {
	case best != nil:
		return *best, nil
	case problem != nil:
		return core.Device{}, problem
	case want == "":
		return core.Device{}, core.Errorf(core.Unsupported, "%s: the worker type found no device", what)
	}
	return core.Device{}, core.Errorf(core.NotFound, "%s: there is no device %q", what, want).Hint("Devices of this worker type: %s.", strings.Join(ids, ", "))
}

// fit is the size chosen for a worker.
type fit struct {
	ContextTokens int   // per slot
	EstimateBytes int64 // of device memory; 0: unknown
}

// memory is what a device can offer.
type memory struct {
	Device     string
	FreeBytes  int64 // not reserved by anybody
	TotalBytes int64
	Known      bool // false: the device does not report its memory, so everything fits
}

// chooseFit finds the context of a worker. want is per slot; 0 leaves it open: then it is the
// model's own, at most defaultContextTokens, halved until it fits. trained is the context that the
// model was trained for, 0: unknown. estimate returns the bytes for a context, 0: unknown. Errors:
// TooLarge with the missing bytes, Invalid for more context than the model was trained for.
func chooseFit(m memory, model string, slots, want, trained int, estimate func(contextTokens int) int64) (fit, error) {
	if want > 0 && trained > 0 && want > trained {
		return fit{}, core.Errorf(core.Invalid, "check memory: a context of %d tokens is more than %s was trained for", want, model).Hint(
			"Ask for at most %d, or leave it out.", trained)
	}
	ctx := mostFit(want, trained)
	for {
		need := estimate(ctx)
		if !m.Known || need == 0 || need <= m.FreeBytes {
			return fit{ContextTokens: ctx, EstimateBytes: need}, nil
		}
		if want > 0 || ctx/2 < leastContextTokens {
			err := core.Errorf(core.TooLarge, "check memory: %s does not fit on device %s: with %d slots of %d tokens it needs %d bytes, %d are free, %d are missing",
				model, m.Device, slots, ctx, need, m.FreeBytes, need-m.FreeBytes)
			return fit{}, core.WithHint(err, "%s", fitHint(slots, ctx))
		}
		ctx /= 2
	}
}

func fitHint(slots, ctx int) string {
	var less []string
	if slots > 1 {
		less = append(less, fmt.Sprintf("fewer slots than %d", slots))
	}
	if ctx > leastContextTokens {
		less = append(less, fmt.Sprintf("a smaller context than %d", ctx))
	}
	less = append(less, "a smaller model or quantisation")
	return "Ask for " + strings.Join(less, ", or ") + ", or stop another worker on the device."
}
