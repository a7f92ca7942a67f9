package hive

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk"
	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

func TestChooseType(t *testing.T) {
	t.Parallel()
	gguf := []string{"gguf"}
	cpu := typeView{Name: "cpu", Formats: gguf, Devices: []core.Device{{ID: "cpu", Kind: "cpu"}}}
	cuda := typeView{Name: "cuda", Formats: gguf, Devices: []core.Device{{ID: "cuda:0", Kind: "cuda"}, {ID: "cuda:1", Kind: "cuda"}}}
	noCUDA := typeView{Name: "cuda", Problem: "There is no CUDA device."}
	sick := typeView{Name: "cuda", Formats: gguf, Devices: []core.Device{{ID: "cuda:0", Kind: "cuda", Problem: "Fell off the bus."}}}
	vllm := typeView{Name: "vllm", Formats: gguf, Devices: []core.Device{{ID: "cuda:0", Kind: "cuda"}}}
	// Types dropped into the folder: first in the list, with devices.
	dumb := typeView{Name: "aaa", Devices: []core.Device{{ID: "cpu", Kind: "cpu"}, {ID: "cuda:0", Kind: "cuda"}}}
	eager := typeView{Name: "aab", Formats: gguf, Devices: dumb.Devices}
	other := typeView{Name: "aac", Formats: []string{"safetensors"}, Devices: dumb.Devices}
	choosy := typeView{Name: "aad", Formats: gguf, Architectures: []string{"rwkv6"}, Devices: dumb.Devices}
	for name, c := range map[string]struct {
		types      []typeView
		typ, dev   string
		arch       string
		want, says string
		kind       core.Kind
	}{
		"only cpu":                {types: []typeView{cpu}, want: "cpu"},
		"the best there is":       {types: []typeView{cpu, cuda}, want: "cuda"},
		"first of the better":     {types: []typeView{cpu, vllm, cuda}, want: "vllm"},
		"problem falls to cpu":    {types: []typeView{noCUDA, cpu}, want: "cpu"},
		"sick device":             {types: []typeView{sick, cpu}, want: "cpu"},
		"by name":                 {types: []typeView{cpu, cuda}, typ: "cpu", want: "cpu"},
		"by device":               {types: []typeView{cpu, cuda}, dev: "cuda:1", want: "cuda"},
		"by kind":                 {types: []typeView{cpu, cuda}, dev: "cuda", want: "cuda"},
		"cpu by device":           {types: []typeView{cuda, cpu}, dev: "cpu", want: "cpu"},
		"named, with a problem":   {types: []typeView{cpu, noCUDA}, typ: "cuda", kind: core.Unsupported, says: "There is no CUDA device."},
		"device with a problem":   {types: []typeView{cpu, noCUDA}, dev: "cuda:0", kind: core.Unsupported, says: "There is no CUDA device."},
		"second type can":         {types: []typeView{noCUDA, vllm}, dev: "cuda:0", want: "vllm"},
		"unknown type":            {types: []typeView{cpu}, typ: "tpu", kind: core.NotFound, says: "tpu"},
		"unknown device":          {types: []typeView{cpu, cuda}, dev: "metal:0", kind: core.NotFound, says: "metal:0"},
		"nothing there":           {kind: core.Unsupported, says: "no worker type"},
		"nothing works":           {types: []typeView{noCUDA}, kind: core.Unsupported, says: "There is no CUDA device."},
		"says nothing":            {types: []typeView{dumb, other, cpu}, want: "cpu"},
		"says nothing, alone":     {types: []typeView{dumb}, kind: core.Unsupported, says: "worker type aaa does not say that it serves"},
		"says nothing, by name":   {types: []typeView{dumb, cpu}, typ: "aaa", want: "aaa"},
		"says nothing, device":    {types: []typeView{dumb, vllm}, dev: "cuda:0", want: "vllm"},
		"only one that is dumb":   {types: []typeView{dumb, cpu}, dev: "cuda:0", kind: core.Unsupported, says: "worker type aaa does not say that it serves"},
		"shadows the cpu":         {types: []typeView{eager, cpu}, dev: "cpu", want: "cpu"},
		"shadows another type":    {types: []typeView{eager, cuda}, dev: "cuda:0", want: "cuda"},
		"another architecture":    {types: []typeView{choosy, cpu}, arch: "llama", want: "cpu"},
		"its architecture":        {types: []typeView{choosy, cpu}, arch: "rwkv6", want: "aad"},
		"no such architecture":    {types: []typeView{choosy}, arch: "llama", kind: core.Unsupported, says: "worker type aad does not say that it serves llama"},
		"not probed yet, by name": {types: []typeView{{Name: "x"}}, typ: "x", want: "x"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := chooseType(c.types, c.typ, c.dev, c.arch)
			if c.kind != "" {
				must.Eq(t, c.kind, core.KindOf(err))
				must.ErrorContains(t, err, c.says)
				return
			}
			must.NoError(t, err)
			must.Eq(t, c.want, got)
		})
	}
}

// A device that several types report is shown as the type with its name reports it, in any order.
func TestDevicesOwnType(t *testing.T) {
	t.Parallel()
	device := func(id, name string) sdkworker.Fingerprint {
		return sdkworker.Fingerprint{Devices: []sdkworker.Device{{ID: id, Kind: deviceKind(id), Name: name, TotalBytes: 1}}}
	}
	var types []*workerType
	for _, x := range []struct{ name, device string }{{"aaa", "cpu"}, {"aaa2", "cuda:0"}, {"cpu", "cpu"}, {"cuda", "cuda:0"}, {"zzz", "cuda:0"}, {"zz1", "npu"}, {"zz2", "npu"}} {
		w := newType(pluginhost.Spec{Name: x.name})
		w.note(sdk.Info{}, device(x.device, "as "+x.name+" says"), "")
		types = append(types, w)
	}
	ts := &typeSet{list: types, rooms: newRooms(newSettings(Defaults{}), newRoster(""))}
	devices, _ := ts.devices(0)
	var names []string
	for _, d := range devices {
		names = append(names, d.ID+" "+d.Name)
	}
	must.Eq(t, []string{"cpu as cpu says", "cuda:0 as cuda says", "npu as zz1 says"}, names)
}

// What the settings of a block decide takes precedence over what the plugin reports without them.
func TestFormatsOfFingerprint(t *testing.T) {
	t.Parallel()
	w := newType(pluginhost.Spec{Name: "server"})
	ts := &typeSet{list: []*workerType{w}}
	w.note(sdk.Info{}, sdkworker.Fingerprint{}, "")
	must.False(t, ts.views()[0].serves("llama"))
	w.note(sdk.Info{}, sdkworker.Fingerprint{Formats: []string{sdk.FormatGGUF}, Architectures: []string{"llama"}}, "")
	must.True(t, ts.views()[0].serves("llama"))
	must.False(t, ts.views()[0].serves("qwen3"))
	w.note(sdk.Info{Formats: []string{sdk.FormatGGUF}, Architectures: []string{"qwen3"}}, sdkworker.Fingerprint{}, "")
	must.True(t, ts.views()[0].serves("qwen3"))
}

func TestChooseDevice(t *testing.T) {
	t.Parallel()
	devices := []core.Device{
		{ID: "cuda:0", Kind: "cuda", FreeBytes: 5},
		{ID: "cuda:1", Kind: "cuda", FreeBytes: 9},
		{ID: "cuda:2", Kind: "cuda", FreeBytes: 99, Problem: "Too hot."},
		{ID: "npu", Kind: "npu", FreeBytes: 50},
	}
	for name, c := range map[string]struct {
		in   []core.Device
		want string
		id   string
		kind core.Kind
	}{
		"most free":       {in: devices, id: "npu"},
		"most free of":    {in: devices, want: "cuda", id: "cuda:1"},
		"by id":           {in: devices, want: "cuda:0", id: "cuda:0"},
		"with a problem":  {in: devices, want: "cuda:2", kind: core.Unsupported},
		"not there":       {in: devices, want: "cuda:7", kind: core.NotFound},
		"none":            {kind: core.Unsupported},
		"only a sick one": {in: devices[2:3], kind: core.Unsupported},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := chooseDevice(c.in, c.want)
			must.Eq(t, c.kind, core.KindOf(err))
			must.Eq(t, c.id, d.ID)
		})
	}
}

func TestChooseFit(t *testing.T) {
	t.Parallel()
	const weights = 1000
	perToken := func(ctx int) int64 { return weights + int64(ctx) }
	for name, c := range map[string]struct {
		free          int64
		unknown       bool
		want, trained int
		ctx           int
		kind          core.Kind
		says          string
	}{
		"the model's own":       {free: 1 << 30, trained: 2048, ctx: 2048},
		"at most the default":   {free: 1 << 30, trained: 131072, ctx: 4096},
		"unknown training":      {free: 1 << 30, ctx: 4096},
		"halved until it fits":  {free: weights + 1100, trained: 8192, ctx: 1024},
		"as asked":              {free: weights + 8192, want: 8192, trained: 131072, ctx: 8192},
		"as asked, one short":   {free: weights + 8191, want: 8192, trained: 131072, kind: core.TooLarge, says: "1 are missing"},
		"does not fit at all":   {free: 100, trained: 4096, kind: core.TooLarge, says: "1412 are missing"},
		"tiny model, no room":   {free: 100, trained: 64, kind: core.TooLarge, says: "964 are missing"},
		"size unknown":          {unknown: true, trained: 512, ctx: 512},
		"more than it can":      {free: 1 << 30, want: 1024, trained: 512, kind: core.Invalid, says: "512"},
		"exactly what it can":   {free: 1 << 30, want: 512, trained: 512, ctx: 512},
		"small model keeps own": {free: 1 << 30, trained: 100, ctx: 100},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := chooseFit(memory{Device: "cpu", FreeBytes: c.free, Known: !c.unknown}, "m", 2, c.want, c.trained, perToken)
			if c.kind != "" {
				must.Eq(t, c.kind, core.KindOf(err))
				must.NotEq(t, "", core.HintOf(err))
				must.StrContains(t, err.Error()+core.HintOf(err), c.says)
				return
			}
			must.NoError(t, err)
			must.Eq(t, c.ctx, got.ContextTokens)
			must.Eq(t, perToken(c.ctx), got.EstimateBytes)
		})
	}
}
