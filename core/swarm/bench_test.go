package swarm_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/rpc"
	"github.com/rbee-project/rbee/core/swarm"
)

// diskFile is a whole file on disk.
type diskFile struct {
	*os.File
	size int64
}

func (f diskFile) Size() int64                                { return f.size }
func (f diskFile) Wait(context.Context, int64) (int64, error) { return f.size, nil }

type diskShelf struct{ path string }

func (s diskShelf) OpenBlob(string) (swarm.Blob, error) {
	f, err := os.Open(s.path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return diskFile{f, info.Size()}, nil
}

func benchIdentity(b *testing.B, ca *pki.CA, id string) *pki.Identity {
	b.Helper()
	key, err := pki.NewKey()
	must.NoError(b, err)
	csr, err := pki.NewRequest(key, id)
	must.NoError(b, err)
	cert, _, err := ca.Sign(csr, pki.Node{Cluster: ca.Cluster(), ID: id, Name: id, Roles: []core.Role{core.RoleHive}}, nil, time.Hour, time.Now())
	must.NoError(b, err)
	i, err := pki.Create(b.TempDir(), pki.Material{ClusterName: "test", Name: id, RPCAddress: "127.0.0.1:7834", CAPEM: ca.CertPEM(), NodePEM: cert, Key: key})
	must.NoError(b, err)
	return i
}

// BenchmarkFromHive fetches a file of 256 MiB from a hive over the RPC port, as hives do, but does
// not write it to disk.
func BenchmarkFromHive(b *testing.B) {
	const size = 256 << 20
	ca, err := pki.NewCA("00c0ffee00c0ffee", "test", time.Now())
	must.NoError(b, err)
	path := filepath.Join(b.TempDir(), "blob")
	must.NoError(b, os.WriteFile(path, make([]byte, size), 0o600))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(b, err)
	mux := rpc.NewMux(l, rpc.MuxOptions{Identity: benchIdentity(b, ca, "00000001")})
	pool := rpc.NewPool(rpc.PoolOptions{Identity: benchIdentity(b, ca, "00000002")})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = mux.Run(ctx) })
	wg.Go(func() { _ = swarm.NewServer(diskShelf{path}, nil, nil).Serve(ctx, mux.Blobs()) })
	b.Cleanup(func() { _ = pool.Close(); cancel(); wg.Wait() })
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return pool.DialBlob(ctx, "00000001", l.Addr().String())
	}
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(nil))
	b.SetBytes(size)
	for b.Loop() {
		must.NoError(b, swarm.FetchFrom(b.Context(), dial, digest, size, 0, size, io.Discard))
	}
}
