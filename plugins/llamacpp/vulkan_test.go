package llamacpp

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

func TestVulkanDevices(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		cards   []vulkanCard
		err     error
		devices []worker.Device
		problem string
	}{
		"two cards and a renderer": {
			cards: []vulkanCard{{"llvmpipe", 4, 1 << 30}, {"Radeon", vulkanDiscrete, 8 << 30}, {"Iris", vulkanIntegrated, 2 << 30}},
			devices: []worker.Device{
				{ID: "vulkan:0", Kind: "vulkan", Name: "Radeon", TotalBytes: 8 << 30, FreeBytes: 8 << 30},
				{ID: "vulkan:1", Kind: "vulkan", Name: "Iris", TotalBytes: 2 << 30, FreeBytes: 2 << 30},
			},
		},
		"only a renderer": {cards: []vulkanCard{{"llvmpipe", 4, 1 << 30}}, problem: "Vulkan found no graphics card in this machine (1 other devices); use the worker type cpu."},
		"no card":         {problem: "Vulkan found no graphics card in this machine (0 other devices); use the worker type cpu."},
		"no loader": {
			err:     errors.New("libvulkan.so.1 is not there"),
			problem: "Vulkan cannot be used here (libvulkan.so.1 is not there); install the Vulkan loader (libvulkan1 on Debian) and the driver of the card, or use the worker type cpu.",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			devices, problem := vulkanDevices(func() ([]vulkanCard, error) { return c.cards, c.err })
			must.Eq(t, c.devices, devices)
			must.Eq(t, c.problem, problem)
		})
	}
}

func TestReadVulkanCard(t *testing.T) {
	t.Parallel()
	props, mem := make([]byte, vkPropertiesSize), make([]byte, vkMemorySize)
	binary.NativeEndian.PutUint32(props[vkTypeOffset:], vulkanDiscrete)
	copy(props[vkNameOffset:], "Radeon\xff\x00garbage")
	binary.NativeEndian.PutUint32(mem[vkHeapCountOffset:], 3)
	for i, heap := range []struct {
		size  uint64
		flags uint32
	}{{8 << 30, vkHeapLocal}, {32 << 30, 0}, {256 << 20, vkHeapLocal | 2}} {
		at := mem[vkHeapsOffset+i*vkHeapSize:]
		binary.NativeEndian.PutUint64(at, heap.size)
		binary.NativeEndian.PutUint32(at[8:], heap.flags)
	}
	must.True(t, vulkanCard{"Radeon?", vulkanDiscrete, 8<<30 + 256<<20} == readVulkanCard(props, mem))

	// A driver that reports more heaps than there is room for is not believed.
	binary.NativeEndian.PutUint32(mem[vkHeapCountOffset:], 1<<31)
	must.Eq(t, "Radeon?", readVulkanCard(props, mem).name)
}

// On any machine, listing the cards returns.
func TestVulkanCards(t *testing.T) {
	t.Parallel()
	cards, err := vulkanCards()
	if err != nil {
		must.Len(t, 0, cards)
	}
	if want := os.Getenv("RBEE_TEST_VULKAN_CARD"); want != "" {
		must.NoError(t, err)
		must.Eq(t, want, cards[0].name)
	}
}
