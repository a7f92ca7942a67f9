package worker

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/shoenig/test/must"
)

// A plugin's report about its machine is bounded and its memory plausible, because it goes to the
// registry and placement uses it.
func TestFingerprintBounds(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ü", 1<<20)
	said := Fingerprint{
		Problem: long, BesideBytes: -5,
		Devices: []Device{
			{ID: "a", Kind: "x", Name: long, Problem: long, TotalBytes: 10, FreeBytes: 1 << 40},
			{ID: "b", Kind: "x", TotalBytes: -1, FreeBytes: -1},
			{ID: "c", Kind: "x", TotalBytes: 1<<63 - 1, FreeBytes: 1<<63 - 1},
			{ID: long, Kind: "x"},
		},
	}
	for i := range 1000 {
		said.Devices = append(said.Devices, Device{ID: fmt.Sprint(i), Kind: "x"})
		said.Warnings = append(said.Warnings, long[:8<<10])
		said.Checks = append(said.Checks, Check{Name: "n", Detail: long[:8<<10]})
		said.Beside = append(said.Beside, ModelFile{Path: "/x", Role: RoleDraft})
	}
	got := fingerprintFromProto(fingerprintToProto(said))
	must.Len(t, MaxDevices, got.Devices)
	must.Eq(t, Device{ID: "b", Kind: "x"}, got.Devices[1])
	must.Eq(t, int64(10), got.Devices[0].FreeBytes)
	must.Eq(t, int64(maxMemory), got.Devices[2].FreeBytes)
	must.Eq(t, "0", got.Devices[3].ID)
	must.Eq(t, int64(0), got.BesideBytes)
	must.Len(t, MaxBeside, got.Beside)
	must.Len(t, MaxWarnings, got.Warnings)
	must.Len(t, MaxWarnings, got.Checks)
	for _, text := range []string{got.Problem, got.Devices[0].Name, got.Devices[0].Problem, got.Warnings[0], got.Checks[0].Detail} {
		must.LessEq(t, MaxReportBytes, len(text))
		must.True(t, utf8.ValidString(text))
	}
}
