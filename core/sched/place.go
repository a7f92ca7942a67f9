package sched

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// Demand is what a new worker needs. Empty fields leave the choice open.
type Demand struct {
	Model  string // for messages
	Type   string // worker type
	Device string // device id
	// MinBytes is the device memory below which it cannot run: the weights; 0: unknown, so
	// everything fits.
	MinBytes int64
	// EstimateBytes is the device memory with the model's own context; a hive with less reduces the
	// context. 0: unknown.
	EstimateBytes int64
	// OnRequest reports that a request needs the worker: then workers started by hand make room as
	// well.
	OnRequest bool
}

// Room describes a hive that may get a new worker.
type Room struct {
	Hive     core.Hive           // includes the free bytes of its devices
	Suspect  bool                // silent at the moment
	HasModel bool                // nothing needs to be fetched
	Binaries []core.WorkerBinary // installed worker types; may be incomplete
	Workers  int                 // workers it runs now
	// Idle and Busy are the bytes, per device, held by workers that may make room: those without
	// requests, and those with.
	Idle, Busy map[string]int64
}

// Placement is the hive that gets a new worker. The hive itself chooses the device: it knows best
// what is free at that time.
type Placement struct {
	Hive   string // Hive.ID
	Reason string
}

// Place chooses the hive for a new worker: one that is ready, can run the worker type and has a
// device with MinBytes free; if there is none, one on which idle workers can make room, then one on
// which busy ones can. Among those, it prefers one with EstimateBytes free, then one that has the
// model, then the one with the most free memory, then the one with the fewest workers. If no hive
// fits, ok is false and the refusals list every hive with the reason, including the bytes that each
// device lacks.
//
// A hive is not refused for an unreported device or device size: it decides itself when it starts
// the worker.
func Place(d Demand, rooms []Room) (p Placement, refused []Refusal, ok bool) {
	type fit struct {
		room  Room
		free  int64
		whole bool // has room for the model's own context
		level level
	}
	var fits []fit
	for _, r := range rooms {
		v := judge(d, r)
		if v.reason != "" {
			refused = append(refused, Refusal{Name: cmp.Or(r.Hive.Name, r.Hive.ID), Reason: v.reason, MissingBytes: v.missing})
			continue
		}
		fits = append(fits, fit{r, v.free, v.free >= d.EstimateBytes || v.unknown, v.level})
	}
	slices.SortFunc(refused, func(a, b Refusal) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Reason, b.Reason)) })
	if len(fits) == 0 {
		return Placement{}, refused, false
	}
	best := slices.MinFunc(fits, func(a, b fit) int {
		return cmp.Or(
			cmp.Compare(a.level, b.level),
			cmp.Compare(rank(a.whole), rank(b.whole)),
			cmp.Compare(rank(a.room.HasModel), rank(b.room.HasModel)),
			cmp.Compare(b.free, a.free),
			cmp.Compare(a.room.Workers, b.room.Workers),
			cmp.Compare(a.room.Hive.ID, b.room.Hive.ID),
		)
	})
	reason := "only hive"
	switch {
	case best.level == levelIdle:
		reason = "unloads idle workers"
	case best.level == levelBusy:
		reason = "waits for busy workers"
	case len(fits) == 1 && len(rooms) > 1:
		reason = fmt.Sprintf("only one of %d hives that can", len(rooms))
	case len(fits) > 1 && best.room.HasModel:
		reason = "has the model"
	case len(fits) > 1:
		reason = "most free memory"
	}
	return Placement{Hive: best.room.Hive.ID, Reason: reason}, refused, true
}

func rank(good bool) int {
	if good {
		return 0
	}
	return 1
}

// verdict is the judgement of a hive: the free bytes of its best device, or the reason to refuse
// it.
type verdict struct {
	free    int64
	unknown bool // a device's size is unknown, so it is assumed to be enough
	reason  string
	missing int64 // bytes missing on the device that lacks least; 0: refused for another reason
	level   level // level of the best device
}

// level tells whose memory a worker takes.
type level int

const (
	levelFree level = iota // free memory
	levelIdle              // memory of workers without requests
	levelBusy              // also memory of workers with requests
)

// room returns the bytes of a device at each level.
func (r Room) room(dev core.Device) [3]int64 {
	free := dev.FreeBytes
	idle := min(free+r.Idle[dev.ID], max(dev.TotalBytes, free))
	return [3]int64{free, idle, min(idle+r.Busy[dev.ID], max(dev.TotalBytes, idle))}
}

func judge(d Demand, r Room) verdict {
	switch {
	case r.Hive.Status == core.HiveDown:
		return verdict{reason: "is down"}
	case r.Suspect || r.Hive.Status == core.HiveSuspect:
		return verdict{reason: "is silent"}
	case r.Hive.Draining:
		return verdict{reason: "drains"}
	case d.Type != "" && !runs(r, d.Type):
		if len(r.Hive.WorkerTypes) == 0 {
			return verdict{reason: fmt.Sprintf("has no worker type %q", d.Type)}
		}
		return verdict{reason: fmt.Sprintf("has no worker type %q, it has %s", d.Type, strings.Join(sorted(r.Hive.WorkerTypes), ", "))}
	case d.Type == "" && len(r.Hive.WorkerTypes) == 0 && len(r.Binaries) == 0:
		return verdict{reason: "has no worker type"}
	}
	devices := devicesFor(d, r)
	if len(devices) == 0 {
		if d.Device == "" || len(r.Hive.Devices) == 0 {
			return verdict{unknown: true} // nothing probed yet
		}
		var have []string
		for _, dev := range r.Hive.Devices {
			have = append(have, dev.ID)
		}
		return verdict{reason: fmt.Sprintf("has no device %q, it has %s", d.Device, strings.Join(sorted(have), ", "))}
	}
	var v verdict
	var reasons []string
	fits := false
	for _, dev := range devices {
		room := r.room(dev)
		missing := d.MinBytes - room[levelBusy]
		switch {
		case dev.Problem != "":
			reasons = append(reasons, fmt.Sprintf("%s cannot be used: %s", dev.ID, dev.Problem))
		case dev.TotalBytes > 0 && missing > 0:
			could := ""
			if more := room[levelBusy] - room[levelFree]; more > 0 {
				could = fmt.Sprintf(", %d more if workers unload", more)
			}
			reasons = append(reasons, fmt.Sprintf("%s lacks %d bytes: %d needed, %d of %d free%s",
				dev.ID, missing, d.MinBytes, dev.FreeBytes, dev.TotalBytes, could))
			if v.missing == 0 || missing < v.missing {
				v.missing = missing
			}
		default:
			at := levelFree
			for dev.TotalBytes > 0 && room[at] < d.MinBytes {
				at++
			}
			if !fits || at < v.level {
				v.level, v.free = at, room[at]
			} else if at == v.level {
				v.free = max(v.free, room[at])
			}
			fits = true
			v.unknown = v.unknown || dev.TotalBytes == 0
		}
	}
	if fits {
		v.missing = 0
		return v
	}
	slices.Sort(reasons)
	v.reason = strings.Join(reasons, "; ")
	return v
}

// runs reports whether the hive has the worker type, installed or not.
func runs(r Room, typ string) bool {
	return slices.Contains(r.Hive.WorkerTypes, typ) ||
		slices.ContainsFunc(r.Binaries, func(b core.WorkerBinary) bool { return b.Type == typ && b.Damaged == "" })
}

// devicesFor returns the devices that the demand allows. An installed binary of the type knows its
// devices; without one, a type's devices are those of the kind with its name, or all if there are
// none.
func devicesFor(d Demand, r Room) []core.Device {
	devices := r.Hive.Devices
	if d.Type != "" {
		mine := func(dev core.Device) bool { return dev.Kind == d.Type }
		var probed []string
		for _, b := range r.Binaries {
			if b.Type != d.Type || b.Damaged != "" {
				continue
			}
			for _, dev := range b.Devices {
				probed = append(probed, dev.ID)
			}
		}
		if len(probed) > 0 {
			mine = func(dev core.Device) bool { return slices.Contains(probed, dev.ID) }
		}
		if some := filter(devices, mine); len(some) > 0 {
			devices = some
		}
	}
	if d.Device != "" {
		devices = filter(devices, func(dev core.Device) bool { return dev.ID == d.Device })
	}
	return devices
}

func filter(devices []core.Device, keep func(core.Device) bool) []core.Device {
	var out []core.Device
	for _, d := range devices {
		if keep(d) {
			out = append(out, d)
		}
	}
	return out
}

func sorted(names []string) []string {
	names = slices.Clone(names)
	slices.Sort(names)
	return slices.Compact(names)
}
