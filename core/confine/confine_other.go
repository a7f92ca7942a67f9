//go:build !linux

package confine

import "os/exec"

// Problem returns the reason why Start cannot confine on this machine; empty: it can.
func Problem() string { return "this operating system has no Landlock" }

// Start starts cmd unconfined.
func Start(cmd *exec.Cmd, _ Rules) error { return cmd.Start() }
