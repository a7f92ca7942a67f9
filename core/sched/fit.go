package sched

import (
	"cmp"
	"slices"

	"github.com/rbee-project/rbee/core"
)

// Fit is a device that has room for a worker.
type Fit struct {
	Hive   core.Hive
	Device string // Device.ID; empty: the hive has not reported its devices, and chooses one itself
	// TakesBytes is what the worker takes of the device: EstimateBytes, or all of a smaller device.
	// FreeBytes of them are free; workers that can unload hold the rest.
	TakesBytes, FreeBytes int64
	HasModel              bool
	whole                 bool // has room for the model's own context
	level                 level
}

// Compare orders fits as Place does, best first.
func (f Fit) Compare(than Fit) int {
	return cmp.Or(
		cmp.Compare(f.level, than.level),
		cmp.Compare(rank(f.whole), rank(than.whole)),
		cmp.Compare(rank(f.HasModel), rank(than.HasModel)),
		cmp.Compare(than.FreeBytes, f.FreeBytes),
		cmp.Compare(f.Hive.ID, than.Hive.ID),
		cmp.Compare(f.Device, than.Device),
	)
}

// Lack is the memory that a device lacks.
type Lack struct {
	Hive, Device                       string // Hive.Name or, without one, Hive.ID
	NeedBytes, RoomBytes, MissingBytes int64
}

// Fits returns the devices, of those that keep allows, on which a new worker has room by the rules
// of Place; the hives without such a device, with the reason; and the lacking memory of each device
// that is too small or too full. All are in a fixed order.
func Fits(d Demand, rooms []Room, keep func(core.Hive, core.Device) bool) (fits []Fit, refused []Refusal, lacks []Lack) {
	for _, r := range rooms {
		devices := slices.DeleteFunc(slices.Clone(devicesFor(d, r)), func(dev core.Device) bool { return !keep(r.Hive, dev) })
		name := cmp.Or(r.Hive.Name, r.Hive.ID)
		switch known := len(r.Hive.Devices) > 0; {
		case known && len(devices) == 0:
			if v := judge(d, r); v.reason != "" {
				refused = append(refused, Refusal{Name: name, Reason: v.reason})
			} else {
				refused = append(refused, Refusal{Name: name, Reason: "has no device that is allowed"})
			}
			continue
		case !known && !keep(r.Hive, core.Device{}):
			refused = append(refused, Refusal{Name: name, Reason: "has not said which devices it has"})
			continue
		case !known:
			devices = []core.Device{{}}
		}
		reasons := refusalsOf(d, r, devices, name, &fits, &lacks)
		refused = append(refused, reasons...)
	}
	slices.SortFunc(fits, Fit.Compare)
	slices.SortFunc(refused, func(a, b Refusal) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Reason, b.Reason)) })
	slices.SortFunc(lacks, func(a, b Lack) int { return cmp.Or(cmp.Compare(a.Hive, b.Hive), cmp.Compare(a.Device, b.Device)) })
	return fits, refused, lacks
}

// refusalsOf judges each of a hive's devices separately. The hive is refused if none fits.
func refusalsOf(d Demand, r Room, devices []core.Device, name string, fits *[]Fit, lacks *[]Lack) []Refusal {
	var refused []Refusal
	fitted := false
	for _, dev := range devices {
		on := d
		on.Device = dev.ID
		v := judge(on, r)
		if v.reason != "" {
			if v.missing > 0 {
				*lacks = append(*lacks, Lack{Hive: name, Device: dev.ID, NeedBytes: d.MinBytes, RoomBytes: d.MinBytes - v.missing, MissingBytes: v.missing})
			}
			if refusal := (Refusal{Name: name, Reason: v.reason, MissingBytes: v.missing}); !slices.Contains(refused, refusal) {
				refused = append(refused, refusal)
			}
			continue
		}
		fitted = true
		f := Fit{Hive: r.Hive, Device: dev.ID, HasModel: r.HasModel, FreeBytes: dev.FreeBytes, level: v.level, whole: v.unknown || v.free >= d.EstimateBytes}
		if f.TakesBytes = max(d.MinBytes, d.EstimateBytes); dev.TotalBytes > 0 {
			f.TakesBytes = max(d.MinBytes, min(f.TakesBytes, v.free))
		}
		*fits = append(*fits, f)
	}
	if fitted {
		return nil
	}
	return refused
}

// Whole reports whether the device has room for the model's own context. Otherwise the hive takes
// what is free when the worker starts.
func (f Fit) Whole() bool { return f.whole }

// Unloads reports whether workers must unload to make the device fit.
func (f Fit) Unloads() bool { return f.level > levelFree }
