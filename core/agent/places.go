package agent

import "syscall"

const (
	// ownFiles is the number of files that an agent opens besides connections: logs, stores,
	// sockets of workers and plugins.
	ownFiles = 64
	// mostFiles bounds the number of files that connections are planned for, however high the limit
	// on open files.
	mostFiles = 64 << 10
)

// places bounds the connections of each kind, so that they never use up the files that an agent may
// open.
type places struct {
	public     int // to the HTTP API; each may need another one, to a worker
	streams    int // from other nodes, for data and files
	handshakes int // on the RPC port, with the handshake still in progress
	guests     int // on the RPC port, without a certificate
}

// placesFor divides up a number of open files.
func placesFor(files int) places {
	left := max(min(files, mostFiles)-ownFiles, 32)
	return places{public: left / 4, streams: left / 4, handshakes: min(left/12, 256), guests: min(left/24, 32)}
}

// openFiles returns how many files this process may have open. Go has already raised the soft limit
// to the hard one.
func openFiles() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return int(min(limit.Cur, mostFiles)) //nolint:gosec // bounded
}
