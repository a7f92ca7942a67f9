//go:build !linux

package pluginhost

import "github.com/rbee-project/rbee/core/hostinfo"

// waitGone returns true when the process has exited, reaped or not, and false when released is
// closed first.
func waitGone(id hostinfo.Identity, released <-chan struct{}) bool { return pollGone(id, released) }
