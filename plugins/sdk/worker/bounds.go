package worker

import "strings"

// Bounds of a Fingerprint; a host drops the excess, and cuts longer texts.
const (
	MaxDevices     = 64
	MaxDeviceBytes = 64   // of a Device's ID and Kind; a device with a longer one is dropped
	MaxWarnings    = 64   // applies to Checks as well
	MaxFormats     = 1024 // applies to Architectures as well
	MaxReportBytes = 2 << 10
	maxMemory      = 1 << 50 // most memory that a device may report, in bytes
)

// bounded returns the part of a report that a host accepts, whatever the plugin sent: a bounded
// number of devices, bounded texts, and plausible memory sizes.
func (f Fingerprint) bounded() Fingerprint {
	f.Problem = cut(f.Problem)
	var devices []Device
	for _, d := range f.Devices {
		if len(devices) == MaxDevices {
			break
		}
		if len(d.ID) > MaxDeviceBytes || len(d.Kind) > MaxDeviceBytes {
			continue
		}
		d.Name, d.Problem = cut(d.Name), cut(d.Problem)
		d.TotalBytes = min(max(d.TotalBytes, 0), maxMemory)
		d.FreeBytes = min(max(d.FreeBytes, 0), d.TotalBytes)
		devices = append(devices, d)
	}
	f.Devices = devices
	f.Warnings = f.Warnings[:min(len(f.Warnings), MaxWarnings)]
	for i := range f.Warnings {
		f.Warnings[i] = cut(f.Warnings[i])
	}
	f.Checks = f.Checks[:min(len(f.Checks), MaxWarnings)]
	for i, c := range f.Checks {
		f.Checks[i] = Check{Name: cut(c.Name), Passed: c.Passed, Detail: cut(c.Detail)}
	}
	f.Beside = f.Beside[:min(len(f.Beside), MaxBeside)]
	f.Formats = f.Formats[:min(len(f.Formats), MaxFormats)]
	f.Architectures = f.Architectures[:min(len(f.Architectures), MaxFormats)]
	f.BesideBytes = min(max(f.BesideBytes, 0), maxMemory)
	return f
}

func cut(s string) string {
	if len(s) <= MaxReportBytes {
		return s
	}
	return strings.ToValidUTF8(s[:MaxReportBytes], "")
}
