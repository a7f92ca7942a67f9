package pluginhost

import (
	"io/fs"
	"syscall"
	"time"

	"github.com/rbee-project/rbee/core/hostinfo"
)

const pollInterval = 100 * time.Millisecond

// pollGone is waitGone for systems without a better way.
func pollGone(id hostinfo.Identity, released <-chan struct{}) bool {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for id.Alive() {
		select {
		case <-released:
			return false
		case <-tick.C:
		}
	}
	return true
}

// inodeOf identifies the file and its state; nil where the system has no inodes.
func inodeOf(info fs.FileInfo) any {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return [3]any{st.Dev, st.Ino, changedAt(st)}
	}
	return nil
}
