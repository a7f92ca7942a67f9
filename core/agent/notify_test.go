package agent

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestNotify(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "sd") //nolint:usetesting // the path of a unix socket must be short
	must.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	sockets := map[string]string{"a path": filepath.Join(dir, "notify")}
	if runtime.GOOS == "linux" {
		sockets["an abstract name"] = "@" + dir
	}
	for name, socket := range sockets {
		t.Run(name, func(t *testing.T) {
			l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
			must.NoError(t, err)
			defer l.Close()
			must.NoError(t, notify(t.Context(), socket, "READY=1"))
			must.NoError(t, l.SetReadDeadline(time.Now().Add(30*time.Second)))
			b := make([]byte, 64)
			n, err := l.Read(b)
			must.NoError(t, err)
			must.Eq(t, "READY=1", string(b[:n]))
		})
	}
	must.NoError(t, notify(t.Context(), "", "READY=1"))
	must.Error(t, notify(t.Context(), filepath.Join(dir, "nobody"), "READY=1"))
}
