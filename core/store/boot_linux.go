package store

import (
	"os"
	"strings"
)

// bootID names the time since the machine was started; empty where it is not known.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
