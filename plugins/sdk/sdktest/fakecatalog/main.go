// Command rbee-catalog-fake is package fake's catalog source as a plugin. It misbehaves for the
// references crash, freeze, huge, many and flood, and from its start if RBEE_FAKE_GARBAGE is set.
package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest/fake"
)

func main() {
	if os.Getenv("RBEE_FAKE_GARBAGE") != "" {
		garbage()
		return
	}
	catalog.Serve(rude{fake.NewCatalog(fake.NameOf(sdk.KindCatalog, os.Args[0]))})
}

// rude is a fake catalog that misbehaves.
type rude struct{ *fake.Catalog }

// Resolve does what no plugin should.
func (r rude) Resolve(ctx context.Context, ref string) (catalog.Manifest, error) {
	switch ref {
	case "crash":
		os.Exit(3)
	case "freeze":
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		<-ctx.Done() // SIGSTOP reaches the other threads slightly later
		return catalog.Manifest{}, ctx.Err()
	case "huge":
		return catalog.Manifest{Ref: ref, Name: strings.Repeat("x", 256<<20)}, nil
	case "many":
		// 4 MiB on the wire
		return catalog.Manifest{Ref: ref, Name: "many", Files: make([]catalog.File, 2<<20)}, nil
	case "flood":
		line := append(bytes.Repeat([]byte("x"), 1000), '\n')
		for range 50_000 {
			_, _ = os.Stderr.Write(line)
		}
		return catalog.Manifest{Ref: ref, Name: "flood", Files: []catalog.File{{Path: "x"}}}, nil
	}
	return r.Catalog.Resolve(ctx, ref)
}

// garbage prints a handshake line and then sends bytes of no protocol.
func garbage() {
	socket := filepath.Join(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), "garbage")
	l, err := net.Listen("unix", socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("1|1|unix|%s|grpc|\n", socket)
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		for err == nil {
			_, err = conn.Write(bytes.Repeat([]byte{0, 255, 'g'}, 1000))
		}
	}
}
