package llamacpp

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/ebitengine/purego"

	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// cudaDriver is the part of NVIDIA's driver API that works without allocating memory on a card.
type cudaDriver interface {
	count() (int, error)
	name(i int) (string, error)
	total(i int) (int64, error)
	free(i int) (int64, bool) // false: unknown
}

// cudaDevices lists the cards, or explains in one sentence why there are none.
func cudaDevices(open func() (cudaDriver, error)) ([]worker.Device, string) {
	driver, err := open()
	if err != nil {
		return nil, fmt.Sprintf("NVIDIA's driver cannot be used here (%v); install it, or use the worker type cpu.", err)
	}
	n, err := driver.count()
	if err != nil {
		return nil, fmt.Sprintf("NVIDIA's driver cannot list the cards (%v); check it with nvidia-smi, or use the worker type cpu.", err)
	}
	if n == 0 {
		return nil, "There is no NVIDIA card in this machine; use the worker type cpu."
	}
	var out []worker.Device
	for i := range n {
		d := worker.Device{ID: fmt.Sprintf("cuda:%d", i), Kind: string(CUDA)}
		if d.Name, err = driver.name(i); err != nil {
			d.Name, d.Problem = fmt.Sprintf("NVIDIA card %d", i), fmt.Sprintf("The driver cannot describe this card (%v).", err)
		}
		if d.TotalBytes, err = driver.total(i); err != nil {
			d.TotalBytes, d.Problem = 0, fmt.Sprintf("The driver cannot tell the memory of this card (%v).", err)
		}
		if free, ok := driver.free(i); ok {
			d.FreeBytes = free
		} else {
			d.FreeBytes = d.TotalBytes // best available estimate
		}
		out = append(out, d)
	}
	return out, ""
}

// realCUDA queries libcuda, and libnvidia-ml for the free memory: libcuda reports that only after
// allocating some.
type realCUDA struct {
	deviceCount func(n *int32) int32
	deviceGet   func(device *int32, index int32) int32
	deviceName  func(buf *byte, size, device int32) int32
	deviceTotal func(bytes *uint64, device int32) int32
	devicePCI   func(buf *byte, size, device int32) int32

	nvmlByPCI  func(id *byte, device *uintptr) int32
	nvmlMemory func(device uintptr, info *nvmlMemory) int32
}

// nvmlMemory is nvmlMemory_t: total, free and used bytes.
type nvmlMemory [3]uint64

func openCUDA() (cudaDriver, error) {
	lib, err := purego.Dlopen("libcuda.so.1", purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, errors.New("libcuda.so.1 is not there")
	}
	var initialise func(flags uint32) int32
	r := &realCUDA{}
	for name, fn := range map[string]any{
		"cuInit": &initialise, "cuDeviceGetCount": &r.deviceCount, "cuDeviceGet": &r.deviceGet, "cuDeviceGetName": &r.deviceName,
		"cuDeviceTotalMem_v2": &r.deviceTotal, "cuDeviceGetPCIBusId": &r.devicePCI,
	} {
		if err := bind(lib, name, fn); err != nil {
			return nil, err
		}
	}
	if code := initialise(0); code != 0 {
		return nil, fmt.Errorf("cuInit returned %d", code)
	}
	r.openNVML()
	return r, nil
}

// openNVML opens libnvidia-ml, which is needed for the free memory only; without it the cards work
// all the same.
func (r *realCUDA) openNVML() {
	lib, err := purego.Dlopen("libnvidia-ml.so.1", purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return
	}
	var initialise func() int32
	var byPCI func(id *byte, device *uintptr) int32
	var memory func(device uintptr, info *nvmlMemory) int32
	for name, fn := range map[string]any{"nvmlInit_v2": &initialise, "nvmlDeviceGetHandleByPciBusId_v2": &byPCI, "nvmlDeviceGetMemoryInfo": &memory} {
		if bind(lib, name, fn) != nil {
			return
		}
	}
	if initialise() == 0 {
		r.nvmlByPCI, r.nvmlMemory = byPCI, memory
	}
}

func bind(lib uintptr, name string, fn any) error {
	addr, err := purego.Dlsym(lib, name)
	if err != nil {
		return fmt.Errorf("%s is missing in the driver", name)
	}
	purego.RegisterFunc(fn, addr)
	return nil
}

func (r *realCUDA) count() (int, error) {
	var n int32
	if code := r.deviceCount(&n); code != 0 {
		return 0, fmt.Errorf("cuDeviceGetCount returned %d", code)
	}
	return int(n), nil
}

// device returns the driver's handle of a card.
func (r *realCUDA) device(i int) (int32, error) {
	var d int32
	if code := r.deviceGet(&d, int32(i)); code != 0 {
		return 0, fmt.Errorf("cuDeviceGet returned %d", code)
	}
	return d, nil
}

func (r *realCUDA) name(i int) (string, error) {
	d, err := r.device(i)
	if err != nil {
		return "", err
	}
	var buf [256]byte
	if code := r.deviceName(&buf[0], int32(len(buf)), d); code != 0 {
		return "", fmt.Errorf("cuDeviceGetName returned %d", code)
	}
	text, _, _ := bytes.Cut(buf[:], []byte{0})
	return string(text), nil
}

func (r *realCUDA) total(i int) (int64, error) {
	d, err := r.device(i)
	if err != nil {
		return 0, err
	}
	var n uint64
	if code := r.deviceTotal(&n, d); code != 0 {
		return 0, fmt.Errorf("cuDeviceTotalMem returned %d", code)
	}
	return int64(n), nil
}

func (r *realCUDA) free(i int) (int64, bool) {
	if r.nvmlByPCI == nil {
		return 0, false
	}
	d, err := r.device(i)
	if err != nil {
		return 0, false
	}
	var id [64]byte
	var device uintptr
	var info nvmlMemory
	if r.devicePCI(&id[0], int32(len(id)), d) != 0 || r.nvmlByPCI(&id[0], &device) != 0 || r.nvmlMemory(device, &info) != 0 {
		return 0, false
	}
	return int64(info[1]), true
}
