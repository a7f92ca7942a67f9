//go:build !linux

package child

import "syscall"

// dieWithParent does nothing: on other systems the host kills what a worker leaves behind.
func dieWithParent(*syscall.SysProcAttr) {}

func keepThread() (unlock func()) { return func() {} }

// collect waits for the process to exit, and kills what is left of its group.
func (c *Child) collect() error {
	err := c.cmd.Wait()
	c.killGroup()
	c.noMore()
	return err
}
