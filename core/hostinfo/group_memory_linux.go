package hostinfo

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// groupMemory reads the memory limit and use of this process's control group (version 2); ok is
// false where there is none.
func groupMemory() (limit, used int64, ok bool) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0, 0, false
	}
	for line := range strings.Lines(string(own)) {
		path, found := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !found {
			continue
		}
		// A limit counts wherever it is set on the way up; the tightest room wins.
		for dir := filepath.Clean("/" + path); ; dir = filepath.Dir(dir) {
			folder := filepath.Join("/sys/fs/cgroup", dir)
			if l, lok := readBytes(filepath.Join(folder, "memory.max")); lok {
				if u, uok := readBytes(filepath.Join(folder, "memory.current")); uok {
					// The page cache of the group can be had back.
					u -= min(u, statBytes(filepath.Join(folder, "memory.stat"), "inactive_file"))
					if !ok || l-u < limit-used {
						limit, used, ok = l, u, true
					}
				}
			}
			if dir == "/" {
				return limit, used, ok
			}
		}
	}
	return 0, 0, false
}

func readBytes(path string) (int64, bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	v, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return v, err == nil
}

func statBytes(path, key string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, found := strings.CutPrefix(line, key+" "); found {
			n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}
