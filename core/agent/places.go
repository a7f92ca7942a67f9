package agent

import "syscall"

const (
	// ownFiles is what an agent opens beside connections: logs, stores, sockets of workers and
	// plugins.
	ownFiles = 64
	// mostFiles bounds what connections are planned for, however many files may be open.
	mostFiles = 64 << 10
)

// places says how many connections of each kind an agent takes, so that they never use up the files
// that it may open.
type places struct {
	public     int // of the HTTP API; each may need another one, to a worker
	streams    int // of other nodes, for data and files
	handshakes int // on the RPC port, not yet over
	guests     int // on the RPC port, without a certificate
}

// placesFor plans for a number of open files.
func placesFor(files int) places {
	left := max(min(files, mostFiles)-ownFiles, 32)
	return places{public: left / 4, streams: left / 4, handshakes: min(left/12, 256), guests: min(left/24, 32)}
}

// openFiles returns how many files this process may have open. Go has raised the soft limit to the
// hard one by now.
func openFiles() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return int(min(limit.Cur, mostFiles)) //nolint:gosec // bounded
}
