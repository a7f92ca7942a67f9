//go:build !linux && !darwin

package pluginhost

import "syscall"

func changedAt(*syscall.Stat_t) any { return nil }
