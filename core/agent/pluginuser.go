package agent

import (
	"bufio"
	"fmt"
	"hash/fnv"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/confine"
)

// numbers is a range of user and group IDs.
type numbers struct{ first, count uint32 }

// pluginNumbers returns the ranges for the plugins' IDs; the first usable one counts: a range that
// no tool hands out (above the ranges of systemd's containers and of subordinate users, and below
// the IDs that are negative as 32 bits), and, for containers with 65,536 IDs, the range of
// systemd's dynamic users.
func pluginNumbers() []numbers {
	return []numbers{{0x7000_0000, 1 << 20}, {61184, 4336}}
}

// pluginUser returns a function that finds the user of a plugin, and, if plugins run as root
// although that can be changed, the reason. If the function is nil, plugins run as this process's
// user. Errors: Invalid for a user that does not exist.
func pluginUser(cfg *config.Config, roots []string) (of func(name string) *confine.User, problem string, err error) {
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		if cfg.Hive.PluginUser != "" {
			problem = "hive.plugin_user takes effect on Linux, and where the agent runs as root"
		}
		return nil, problem, nil
	}
	if cfg.Hive.PluginUser == "root" {
		return nil, "plugins run as root: hive.plugin_user says so", nil
	}
	groups := deviceGroups()
	if name := cfg.Hive.PluginUser; name != "" {
		u, err := account(name, groups)
		if err != nil {
			return nil, "", err
		}
		of = func(string) *confine.User { return u }
	} else {
		r, ok := usableNumbers()
		if !ok {
			return nil, "plugins run as root: this container has no numbers for other users", nil
		}
		// Agents that share a store share the group; otherwise one would take the store from the
		// other.
		gid := r.pick("group " + cfg.StoreDir)
		of = func(name string) *confine.User {
			return &confine.User{UID: r.pick(cfg.DataDir + " " + name), GID: gid, Groups: groups}
		}
	}
	ways := []string{cfg.PluginDir}
	if len(roots) == 0 { // private folders are created there
		ways = append(ways, os.TempDir())
	}
	for _, root := range roots {
		ways = append(ways, filepath.Dir(root))
	}
	for _, dir := range ways {
		if err := of("").Enters(dir); err != nil {
			return nil, fmt.Sprintf("plugins run as root: %v", err), nil
		}
	}
	return of, "", nil
}

// pick returns an ID that is always the same for a text and that no account uses.
func (r numbers) pick(text string) uint32 {
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(text)) // never fails
	for i := range r.count {
		n := r.first + (sum.Sum32()+i)%r.count
		if _, err := user.LookupId(strconv.Itoa(int(n))); err != nil {
			return n
		}
	}
	return r.first
}

// usableNumbers returns the range that this process may use as root, possibly within a container.
func usableNumbers() (numbers, bool) {
	for _, r := range pluginNumbers() {
		if mapped("/proc/self/uid_map", r) && mapped("/proc/self/gid_map", r) {
			return r, true
		}
	}
	return numbers{}, false
}

// mapped reports whether a range lies within one line of a user ID map.
func mapped(file string, r numbers) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var inside, outside, count uint64
		if _, err := fmt.Sscan(lines.Text(), &inside, &outside, &count); err == nil &&
			uint64(r.first) >= inside && uint64(r.first)+uint64(r.count) <= inside+count {
			return true
		}
	}
	return false
}

// account returns a user of this machine. Errors: Invalid.
func account(name string, groups []uint32) (*confine.User, error) {
	const hint = "Set hive { plugin_user = … } to a user without rights, or leave it out."
	u, err := user.Lookup(name)
	if err != nil {
		return nil, core.Errorf(core.Invalid, "find the user of plugins: there is no user %q on this machine", name).Hint(hint)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err == nil && uid == 0 {
		return nil, core.Errorf(core.Invalid, "find the user of plugins: %q is root by another name", name).Hint(hint)
	}
	gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil || gidErr != nil {
		return nil, core.Errorf(core.Invalid, "find the user of plugins: %q has no numbers", name).Hint(hint)
	}
	return &confine.User{UID: uint32(uid), GID: uint32(gid), Groups: groups}, nil
}

// deviceGroups lists the groups that give access to GPUs and other accelerators.
func deviceGroups() []uint32 {
	var out []uint32
	for _, pattern := range []string{"/dev/dri/*", "/dev/nvidia*", "/dev/kfd", "/dev/accel/*"} {
		devices, _ := filepath.Glob(pattern) // the patterns are valid
		for _, d := range devices {
			info, err := os.Stat(d)
			if err != nil || info.Mode()&os.ModeDevice == 0 || info.Mode().Perm()&0o060 != 0o060 {
				continue
			}
			if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Gid != 0 && !slices.Contains(out, stat.Gid) {
				out = append(out, stat.Gid)
			}
		}
	}
	slices.Sort(out)
	return out
}
