//go:build !linux

package child

import "syscall"

// dieWithParent does nothing: elsewhere the host ends what a worker leaves behind.
func dieWithParent(*syscall.SysProcAttr) {}

func keepThread() (unlock func()) { return func() {} }

// collect returns when the process has ended, and kills what is left of its group.
func (c *Child) collect() error {
	err := c.cmd.Wait()
	c.killGroup()
	c.noMore()
	return err
}
