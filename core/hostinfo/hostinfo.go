// Package hostinfo describes this machine and its processes, and signals a process only if it is
// exactly the intended one.
package hostinfo

import (
	"context"
	"math"
	"os"
	"runtime"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/disk"
	"github.com/shirou/gopsutil/v4/load"
	"github.com/shirou/gopsutil/v4/mem"

	"github.com/rbee-project/rbee/core"
)

// Host is this machine at one moment.
type Host struct {
	Name         string // as the operating system knows it
	OS           string // as GOOS
	Arch         string // as GOARCH
	LogicalCPUs  int    // hardware threads, 1 or more
	PhysicalCPUs int    // cores; equal to LogicalCPUs if unknown
	Load1        float64
	Load5        float64
	Load15       float64
	Memory       Memory
	// DiskFreeBytes is the free space of the file system of the folder given to Read; 0 without
	// one.
	DiskFreeBytes int64
}

// Memory is the main memory of this machine.
type Memory struct {
	TotalBytes     int64
	AvailableBytes int64 // available without swapping
}

// Read describes this machine. dir names the folder whose file system it examines and may be empty.
// What a machine cannot report, such as its load, stays zero. Errors: Internal.
func Read(ctx context.Context, dir string) (Host, error) {
	h := Host{OS: runtime.GOOS, Arch: runtime.GOARCH}
	var err error
	if h.Name, err = os.Hostname(); err != nil {
		return Host{}, core.Errorf(core.Internal, "read host: host name: %w", err)
	}
	if h.Memory, err = ReadMemory(ctx); err != nil {
		return Host{}, err
	}
	// 0 if unknown
	if h.LogicalCPUs, _ = cpu.CountsWithContext(ctx, true); h.LogicalCPUs < 1 {
		h.LogicalCPUs = runtime.NumCPU()
	}
	if h.PhysicalCPUs, _ = cpu.CountsWithContext(ctx, false); h.PhysicalCPUs < 1 {
		h.PhysicalCPUs = h.LogicalCPUs
	}
	if avg, err := load.AvgWithContext(ctx); err == nil {
		h.Load1, h.Load5, h.Load15 = avg.Load1, avg.Load5, avg.Load15
	}
	if dir != "" {
		if h.DiskFreeBytes, err = DiskFree(ctx, dir); err != nil {
			return Host{}, err
		}
	}
	return h, nil
}

// ReadMemory returns the main memory, bounded by the memory limit of the control group if there is
// one. Errors: Internal.
func ReadMemory(ctx context.Context) (Memory, error) {
	v, err := mem.VirtualMemoryWithContext(ctx)
	if err != nil {
		return Memory{}, core.Errorf(core.Internal, "read host: memory: %w", err)
	}
	m := Memory{TotalBytes: clamp(v.Total), AvailableBytes: clamp(v.Available)}
	if limit, used, ok := groupMemory(); ok {
		m = m.within(limit, used)
	}
	return m, nil
}

// within returns the memory that a control group with this limit and usage leaves available.
func (m Memory) within(limit, used int64) Memory {
	if limit < m.TotalBytes {
		m.TotalBytes = limit
		m.AvailableBytes = min(m.AvailableBytes, max(limit-used, 0))
	}
	return m
}

// DiskFree returns the bytes that an ordinary user can still write to the file system of dir.
// Errors: Internal.
func DiskFree(ctx context.Context, dir string) (int64, error) {
	u, err := disk.UsageWithContext(ctx, dir)
	if err != nil {
		return 0, core.Errorf(core.Internal, "read host: disk of %s: %w", dir, err)
	}
	return clamp(u.Free), nil
}

func clamp(v uint64) int64 {
	return int64(min(v, math.MaxInt64)) //nolint:gosec // it fits
}
