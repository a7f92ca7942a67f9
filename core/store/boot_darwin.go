package store

import "golang.org/x/sys/unix"

// bootID identifies the machine's current boot; empty if unknown.
func bootID() string {
	id, err := unix.Sysctl("kern.bootsessionuuid")
	if err != nil {
		return ""
	}
	return id
}
