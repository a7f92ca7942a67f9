package worker

import (
	"bytes"
	"io"
	"net"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

// guarded returns both ends of a connection on which sent was already written.
func guarded(t *testing.T, opening, sent string) (ours, theirs net.Conn) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	must.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	ours, err = net.Dial("unix", socket)
	must.NoError(t, err)
	t.Cleanup(func() { _ = ours.Close() })
	_, err = io.WriteString(ours, sent)
	must.NoError(t, err)
	theirs, err = guard{l, opening}.Accept()
	must.NoError(t, err)
	t.Cleanup(func() { _ = theirs.Close() })
	return ours, theirs
}

// The opening is stripped exactly once; everything after it is passed on.
func TestGuard(t *testing.T) {
	t.Parallel()
	ours, theirs := guarded(t, "sesame", "sesameGET sesame")
	b := make([]byte, 100)
	n, err := theirs.Read(b)
	must.NoError(t, err)
	must.Eq(t, "GET sesame", string(b[:n]))
	_, err = io.WriteString(ours, "sesame")
	must.NoError(t, err)
	n, err = theirs.Read(b)
	must.NoError(t, err)
	must.Eq(t, "sesame", string(b[:n]))
}

func TestGuardRefuses(t *testing.T) {
	t.Parallel()
	for name, sent := range map[string]string{"another secret": "simsimGET", "no secret": "GET / HTTP/1.1"} {
		ours, theirs := guarded(t, "sesame", sent)
		n, err := theirs.Read(make([]byte, 100))
		must.ErrorIs(t, err, errOpening, must.Sprint(name))
		must.Zero(t, n)
		_, err = ours.Read(make([]byte, 1)) // it is closed, whatever the reader does
		must.Error(t, err)
	}
	ours, theirs := guarded(t, "sesame", "ses") // cut short
	must.NoError(t, ours.Close())
	n, err := theirs.Read(make([]byte, 100))
	must.ErrorIs(t, err, io.ErrUnexpectedEOF)
	must.Zero(t, n)
}

// Without a secret, bytes pass unchanged.
func TestGuardWithoutSecret(t *testing.T) {
	t.Parallel()
	_, theirs := guarded(t, "", "GET")
	b := make([]byte, 3)
	_, err := io.ReadFull(theirs, b)
	must.NoError(t, err)
	must.True(t, bytes.Equal(b, []byte("GET")))
}

// Accept reports a closed listener, so that the server ends.
func TestGuardEnds(t *testing.T) {
	t.Parallel()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	must.NoError(t, err)
	must.NoError(t, l.Close())
	_, err = guard{l, "sesame"}.Accept()
	must.ErrorIs(t, err, net.ErrClosed)
}
