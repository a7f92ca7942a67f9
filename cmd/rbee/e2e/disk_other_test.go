//go:build !linux

package e2e

import (
	"errors"
	"testing"
)

func smallDisk(t testing.TB, _, _ string) {
	t.Helper()
	t.Skip("small disks are made on Linux only")
}

func fill(string) (func() error, error) { return nil, errors.ErrUnsupported }

type disk struct{}

func frozenDisk(t testing.TB, _ string) *disk {
	t.Helper()
	t.Skip("disks that stop are made on Linux only")
	return nil
}

func (*disk) freeze(bool) error { return errors.ErrUnsupported }
