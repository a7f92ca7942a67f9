package llamacpp

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/ebitengine/purego"
	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/mem"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/native"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// fingerprintEvery is the interval between device checks. The contract allows 30 s.
const fingerprintEvery = 20 * time.Second

// Fingerprint reports devices and health at once, and then at every fingerprintEvery.
func (b *Backend) Fingerprint(ctx context.Context, emit func(worker.Fingerprint) error) error {
	return worker.Look(ctx, fingerprintEvery, b.fingerprint, emit)
}

func (b *Backend) fingerprint(ctx context.Context) worker.Fingerprint {
	b.mu.Lock()
	dir, conf := b.engineDir, b.config
	b.mu.Unlock()
	var f worker.Fingerprint
	f.Beside, f.BesideBytes = conf.beside(b.flavour)
	if len(enginesFor(b.flavour, runtime.GOOS, runtime.GOARCH)) == 0 {
		f.Problem = fmt.Sprintf("There is no llama.cpp for %s on %s/%s: it exists for %s; %s", b.flavour, runtime.GOOS, runtime.GOARCH, b.flavour.where(), b.flavour.elsewhere())
		return f
	}
	switch b.flavour {
	case CPU:
		f.Devices = []worker.Device{cpuDevice(ctx)}
	case CUDA:
		f.Devices, f.Problem = cudaDevices(openCUDA)
	case Metal:
		f.Devices = []worker.Device{metalDevice(ctx)}
	case Vulkan:
		f.Devices, f.Problem = vulkanDevices(vulkanCards)
	}
	if f.Problem != "" || dir == "" {
		return f
	}
	// The engine decides: without its backend the type cannot work, and the CPU is no substitute.
	err := native.Load(dir, b.log)
	if c, looked := native.ABICheck(); looked {
		f.Checks = append(f.Checks, c)
	}
	switch {
	case err != nil:
		f.Problem = "The engine cannot be used: " + err.Error()
	case len(ofFlavour(native.Devices(), b.flavour)) == 0:
		f.Problem = b.noDevice()
	case b.flavour == Vulkan:
		f.Devices = memoryOf(Vulkan) // in the engine's order; it may omit a card
	}
	if f.Problem != "" {
		for i := range f.Devices {
			f.Devices[i].Problem = f.Problem
		}
	}
	return f
}

// ofFlavour returns the devices of a flavour. The id of device n is "<flavour>:n", or "cpu".
func ofFlavour(devices []native.Device, f Flavour) []native.Device {
	var out []native.Device
	for _, d := range devices {
		registry := strings.ToLower(d.Registry)
		switch {
		case f == CPU && registry == "cpu",
			f == CUDA && d.GPU && registry == "cuda",
			f == Vulkan && d.GPU && registry == "vulkan",
			f == Metal && d.GPU && (registry == "metal" || registry == "mtl"):
			out = append(out, d)
		}
	}
	return out
}

// memoryOf describes the devices of a flavour as the engine sees them.
func memoryOf(f Flavour) []worker.Device {
	var out []worker.Device
	for i, d := range ofFlavour(native.Devices(), f) {
		free, total := d.Memory()
		out = append(out, worker.Device{ID: fmt.Sprintf("%s:%d", f, i), Kind: string(f), Name: d.Description, TotalBytes: total, FreeBytes: free})
	}
	return out
}

// elsewhere suggests what to use on systems where a flavour does not exist.
func (f Flavour) elsewhere() string {
	switch f {
	case CUDA:
		return "use the worker type cpu here, or a machine with Linux on x86-64 and an NVIDIA card."
	case Metal:
		return "Metal exists on Macs with Apple silicon only; use the worker type cpu here."
	case Vulkan:
		return "use the worker type cpu here, or metal on a Mac."
	default:
		return "use another machine."
	}
}

// noDevice explains why the loaded engine has no device of the flavour.
func (b *Backend) noDevice() string {
	switch b.flavour {
	case CUDA:
	case Vulkan:
		return "The engine found no Vulkan device it can use; check with vulkaninfo that the driver of the card works, or use the worker type cpu."
	default:
		return fmt.Sprintf("The engine found no %s device on this machine; use the worker type cpu here.", b.flavour)
	}
	var missing []string
	for _, name := range []string{"libcuda.so.1", "libcudart.so.13", "libcublas.so.13"} {
		if _, err := purego.Dlopen(name, purego.RTLD_LAZY|purego.RTLD_LOCAL); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return "The engine found no CUDA device; check with nvidia-smi that the driver works and is new enough for CUDA 13."
	}
	return fmt.Sprintf("The engine found no CUDA device because %s cannot be loaded; install NVIDIA's driver and the CUDA 13 runtime with cuBLAS.", strings.Join(missing, ", "))
}

func cpuDevice(ctx context.Context) worker.Device {
	d := worker.Device{ID: "cpu", Kind: string(CPU), Name: processorName(ctx)}
	if m, err := mem.VirtualMemoryWithContext(ctx); err == nil {
		d.TotalBytes, d.FreeBytes = int64(m.Total), int64(m.Available)
	}
	return d
}

func processorName(ctx context.Context) string {
	if info, err := cpu.InfoWithContext(ctx); err == nil {
		for _, c := range info {
			if name := strings.TrimSpace(c.ModelName); name != "" {
				return name
			}
		}
	}
	return runtime.GOARCH + " processor"
}

// metalDevice describes the graphics processor of Apple silicon, which shares the memory of the
// machine.
func metalDevice(ctx context.Context) worker.Device {
	d := worker.Device{ID: "metal:0", Kind: string(Metal), Name: processorName(ctx) + " GPU"}
	if m, err := mem.VirtualMemoryWithContext(ctx); err == nil {
		// macOS lets the GPU use about three quarters.
		d.TotalBytes = int64(m.Total / 4 * 3)
		d.FreeBytes = min(int64(m.Available), d.TotalBytes)
	}
	return d
}
