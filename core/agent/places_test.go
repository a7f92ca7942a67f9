package agent

import (
	"syscall"
	"testing"

	"github.com/shoenig/test/must"
)

// Whatever the limit, connections and the files they need leave some for the agent itself.
func TestPlacesFor(t *testing.T) {
	t.Parallel()
	for _, files := range []int{100, 256, 1024, 4096, 1 << 20} {
		r := placesFor(files)
		must.LessEq(t, files-ownFiles, 2*r.public+r.streams+r.handshakes+r.guests, must.Sprint(files))
		must.Positive(t, r.guests)
		must.Positive(t, r.handshakes)
	}
	must.Eq(t, 16368, placesFor(1<<30).public)
}

func TestOpenFilesRaised(t *testing.T) {
	t.Parallel()
	var limit syscall.Rlimit
	must.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	must.Eq(t, limit.Max, limit.Cur) // raised by Go at start
	must.Positive(t, openFiles())
}
