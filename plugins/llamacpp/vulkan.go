package llamacpp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/ebitengine/purego"

	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// vulkanCard is one physical device as the Vulkan loader lists it.
type vulkanCard struct {
	name       string
	kind       uint32 // VkPhysicalDeviceType
	localBytes int64  // the device's own memory; an integrated one uses the machine's
}

// The VkPhysicalDeviceTypes that are GPUs. A software renderer reports CPU and does not count.
const (
	vulkanIntegrated = 1
	vulkanDiscrete   = 2
)

func (c vulkanCard) gpu() bool { return c.kind == vulkanIntegrated || c.kind == vulkanDiscrete }

// vulkanDevices lists the GPUs with a Vulkan driver, or explains in one sentence why there are
// none.
func vulkanDevices(list func() ([]vulkanCard, error)) ([]worker.Device, string) {
	cards, err := list()
	if err != nil {
		return nil, fmt.Sprintf("Vulkan cannot be used here (%v); install the Vulkan loader (libvulkan1 on Debian) and the driver of the card, or use the worker type cpu.", err)
	}
	var out []worker.Device
	for _, c := range cards {
		if c.gpu() {
			// Only the engine can tell how much is free.
			out = append(out, worker.Device{ID: fmt.Sprintf("vulkan:%d", len(out)), Kind: string(Vulkan), Name: c.name, TotalBytes: c.localBytes, FreeBytes: c.localBytes})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Sprintf("Vulkan found no graphics card in this machine (%d other devices); use the worker type cpu.", len(cards))
	}
	return out, ""
}

// Layouts of vulkan_core.h: sizes and offsets of the fields read, in bytes.
const (
	vkInstanceInfoSize = 64  // VkInstanceCreateInfo
	vkPropertiesSize   = 824 // VkPhysicalDeviceProperties
	vkTypeOffset       = 16
	vkNameOffset       = 20
	vkNameSize         = 256
	vkMemorySize       = 520 // VkPhysicalDeviceMemoryProperties
	vkHeapsOffset      = 264
	vkHeapCountOffset  = 260
	vkHeapSize         = 16
	vkMaxHeaps         = 16
	vkMaxCards         = 64
	vkHeapLocal        = 1 // VK_MEMORY_HEAP_DEVICE_LOCAL_BIT
	vkRoom             = 2048
)

// vulkanCards queries the Vulkan loader, without allocating memory on a card.
func vulkanCards() ([]vulkanCard, error) {
	const loader = "libvulkan.so.1"
	lib, err := purego.Dlopen(loader, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, errors.New(loader + " is not there")
	}
	var (
		create     func(info, allocator unsafe.Pointer, instance *uintptr) int32
		destroy    func(instance uintptr, allocator unsafe.Pointer)
		enumerate  func(instance uintptr, count *uint32, devices *uintptr) int32
		properties func(device uintptr, out *byte)
		memory     func(device uintptr, out *byte)
	)
	for name, fn := range map[string]any{
		"vkCreateInstance": &create, "vkDestroyInstance": &destroy, "vkEnumeratePhysicalDevices": &enumerate,
		"vkGetPhysicalDeviceProperties": &properties, "vkGetPhysicalDeviceMemoryProperties": &memory,
	} {
		if err := bind(lib, name, fn); err != nil {
			return nil, err
		}
	}
	var info [vkInstanceInfoSize]byte
	info[0] = 1 // VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO; zeros leave the rest to the loader
	var instance uintptr
	if code := create(unsafe.Pointer(&info[0]), nil, &instance); code != 0 {
		return nil, fmt.Errorf("vkCreateInstance returned %d", code)
	}
	defer destroy(instance, nil)
	var devices [vkMaxCards]uintptr
	n := uint32(len(devices))
	if code := enumerate(instance, &n, &devices[0]); code < 0 {
		return nil, fmt.Errorf("vkEnumeratePhysicalDevices returned %d", code)
	}
	out := make([]vulkanCard, 0, n)
	for _, d := range devices[:n] {
		props, mem := make([]byte, vkRoom), make([]byte, vkRoom)
		properties(d, &props[0])
		memory(d, &mem[0])
		runtime.KeepAlive(props)
		out = append(out, readVulkanCard(props[:vkPropertiesSize], mem[:vkMemorySize]))
	}
	return out, nil
}

// readVulkanCard reads the two structs that the loader has filled in for a device.
func readVulkanCard(properties, memory []byte) vulkanCard {
	name, _, _ := bytes.Cut(properties[vkNameOffset:vkNameOffset+vkNameSize], []byte{0})
	c := vulkanCard{name: string(bytes.ToValidUTF8(name, []byte("?"))), kind: binary.NativeEndian.Uint32(properties[vkTypeOffset:])}
	heaps := min(binary.NativeEndian.Uint32(memory[vkHeapCountOffset:]), vkMaxHeaps)
	for i := range heaps {
		heap := memory[vkHeapsOffset+i*vkHeapSize:]
		if binary.NativeEndian.Uint32(heap[8:])&vkHeapLocal != 0 {
			c.localBytes += int64(min(binary.NativeEndian.Uint64(heap), 1<<50))
		}
	}
	return c
}
