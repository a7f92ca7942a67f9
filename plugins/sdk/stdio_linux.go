package sdk

import "golang.org/x/sys/unix"

func stdoutToStderr() error { return unix.Dup3(2, 1, 0) }
