package hostinfo

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// groupFiles names the files of the memory controller in one version of control groups.
type groupFiles struct{ limit, used, inactive string }

// groupMemory reads the memory limit and use of this process's control group; ok is false if there
// is none.
func groupMemory() (limit, used int64, ok bool) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0, 0, false
	}
	return groupMemoryOf(string(own), "/sys/fs/cgroup")
}

// groupMemoryOf reads the limits of the groups that own, in the format of /proc/self/cgroup, names
// below root: those of version 2, and of the memory controller of version 1. A limit counts at any
// level on the way up, and the tightest one applies.
func groupMemoryOf(own, root string) (limit, used int64, ok bool) {
	v1 := groupFiles{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"}
	v2 := groupFiles{"memory.max", "memory.current", "inactive_file"}
	for line := range strings.Lines(own) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		base, files := root, v2
		switch {
		case slices.Contains(strings.Split(fields[1], ","), "memory"):
			base, files = filepath.Join(root, "memory"), v1
		case fields[0] != "0" || fields[1] != "":
			continue
		}
		for dir := filepath.Clean("/" + fields[2]); ; dir = filepath.Dir(dir) {
			if l, u, found := files.read(filepath.Join(base, dir)); found && (!ok || l-u < limit-used) {
				limit, used, ok = l, u, true
			}
			if dir == "/" {
				break
			}
		}
	}
	return limit, used, ok
}

// read returns the limit of one group and its use, without the reclaimable page cache.
func (f groupFiles) read(folder string) (limit, used int64, ok bool) {
	limit, ok = readBytes(filepath.Join(folder, f.limit))
	if !ok {
		return 0, 0, false
	}
	used, ok = readBytes(filepath.Join(folder, f.used))
	return limit, used - min(used, statBytes(filepath.Join(folder, "memory.stat"), f.inactive)), ok
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
	b, _ := os.ReadFile(path) // without it, nothing is known to be reclaimable
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
