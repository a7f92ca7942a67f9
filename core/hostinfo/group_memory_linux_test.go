package hostinfo

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

func TestGroupMemory(t *testing.T) {
	t.Parallel()
	const none = "9223372036854771712\n" // version 1 without a limit
	for name, tt := range map[string]struct {
		own         string
		files       map[string]string
		limit, used int64
		ok          bool
	}{
		"version 2": {"0::/a/b\n", map[string]string{
			"a/b/memory.max": "max\n", "a/b/memory.current": "5\n", "a/memory.max": "1000\n", "a/memory.current": "400\n", "a/memory.stat": "anon 1\ninactive_file 100\n",
		}, 1000, 300, true},
		"version 1": {"5:cpu,memory:/docker/x\n1:name=systemd:/docker/x\n0::/docker/x\n", map[string]string{
			"memory/docker/x/memory.limit_in_bytes": "2000\n", "memory/docker/x/memory.usage_in_bytes": "500\n", "memory/docker/x/memory.stat": "inactive_file 7\ntotal_inactive_file 100\n",
			"memory/memory.limit_in_bytes": none, "memory/memory.usage_in_bytes": "9000\n",
		}, 2000, 400, true},
		"version 1 in a container": {"5:memory:/docker/x\n", map[string]string{"memory/memory.limit_in_bytes": "3000\n", "memory/memory.usage_in_bytes": "10\n"}, 3000, 10, true},
		"both, the tighter":        {"5:memory:/\n0::/\n", map[string]string{"memory/memory.limit_in_bytes": "3000\n", "memory/memory.usage_in_bytes": "10\n", "memory.max": "900\n", "memory.current": "1\n"}, 900, 1, true},
		"neither":                  {"5:cpu:/x\n0::/x\n", nil, 0, 0, false},
		"after others":             {"x\n1:name=systemd:/x\n3:cpu:/x\n0::/\n", map[string]string{"memory.max": "900\n", "memory.current": "100\n", "memory.stat": "inactive_file x\n"}, 900, 100, true},
		"version 1, no limit":      {"5:memory:/\n", map[string]string{"memory/memory.limit_in_bytes": none, "memory/memory.usage_in_bytes": "10\n"}, 9223372036854771712, 10, true},
		"more than can be":         {"0::/\n", map[string]string{"memory.max": "900\n", "memory.current": "100\n", "memory.stat": "inactive_file 99999999999999999999\n"}, 900, 100, true},
		"no use":                   {"0::/\n", map[string]string{"memory.max": "900\n"}, 0, 0, false},
		"another's group":          {"7::/\n0:x:/\n", map[string]string{"memory.max": "900\n", "memory.current": "100\n"}, 0, 0, false},
		"as tight":                 {"0::/a\n", map[string]string{"a/memory.max": "50\n", "a/memory.current": "10\n", "memory.max": "90\n", "memory.current": "50\n"}, 50, 10, true},
		"garbage":                  {"x\n5:memory\n", map[string]string{"memory.max": "1\n"}, 0, 0, false},
	} {
		root := t.TempDir()
		for path, text := range tt.files {
			must.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o700))
			must.NoError(t, os.WriteFile(filepath.Join(root, path), []byte(text), 0o600))
		}
		limit, used, ok := groupMemoryOf(tt.own, root)
		must.Eq(t, tt.ok, ok, must.Sprint(name))
		must.Eq(t, tt.limit, limit, must.Sprint(name))
		must.Eq(t, tt.used, used, must.Sprint(name))
	}
}

// The memory that a control group leaves is never more than the machine has, and never negative.
func TestMemoryWithin(t *testing.T) {
	t.Parallel()
	m := Memory{TotalBytes: 1000, AvailableBytes: 600}
	for name, c := range map[string]struct {
		limit, used      int64
		total, available int64
	}{
		"a limit":                  {500, 100, 500, 400},
		"the machine has less":     {900, 100, 900, 600},
		"all is used":              {500, 500, 500, 0},
		"more is used":             {500, 700, 500, 0},
		"a limit that is none":     {1001, 0, 1000, 600},
		"a limit of all there is":  {1000, 900, 1000, 600},
		"a limit of almost all it": {999, 899, 999, 100},
	} {
		must.Eq(t, Memory{c.total, c.available}, m.within(c.limit, c.used), must.Sprint(name))
	}
}
