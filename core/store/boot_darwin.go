package store

import "golang.org/x/sys/unix"

// bootID names the time since the machine was started; empty where it is not known.
func bootID() string {
	id, err := unix.Sysctl("kern.bootsessionuuid")
	if err != nil {
		return ""
	}
	return id
}
