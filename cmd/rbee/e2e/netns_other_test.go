//go:build !linux

package e2e

import (
	"context"
	"errors"
	"net"
	"os/exec"
	"testing"
	"time"
)

// lan needs network namespaces.
type lan struct{}

func newLAN(t testing.TB) *lan {
	t.Helper()
	t.Skip("there are network namespaces on Linux only")
	return nil
}

func (*lan) add(testing.TB, string)                        {}
func (*lan) readdress(string, string, time.Duration) error { return errors.ErrUnsupported }
func (*lan) plug(string, bool) error                       { return errors.ErrUnsupported }
func (*lan) cut(string, string, bool) error                { return errors.ErrUnsupported }
func (*lan) start(string, *exec.Cmd) error                 { return errors.ErrUnsupported }
func (*lan) dial(context.Context, string, string) (net.Conn, error) {
	return nil, errors.ErrUnsupported
}

type thread struct{}

func newThread() *thread                  { return &thread{} }
func (*thread) start(cmd *exec.Cmd) error { return cmd.Start() }
func (*thread) close()                    {}
