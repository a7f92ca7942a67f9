package sdk

import "golang.org/x/sys/unix"

func stdoutToStderr() error { return unix.Dup2(2, 1) }
