package e2e

import (
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// A service manager is notified when the agent serves, and when it begins to end.
func TestServiceManagerNotified(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(shortDir(t), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	must.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	must.NoError(t, l.SetReadDeadline(time.Now().Add(patience)))
	read := func() string {
		b := make([]byte, 64)
		n, err := l.Read(b)
		must.NoError(t, err)
		return string(b[:n])
	}
	a := startAgent(t, agentOptions{env: []string{"NOTIFY_SOCKET=" + socket}})
	must.Eq(t, "READY=1", read())
	a.stop(syscall.SIGTERM)
	must.Eq(t, "STOPPING=1", read())
}
