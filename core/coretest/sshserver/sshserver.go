// Package sshserver is an SSH server within a test: real handshakes, and commands that the test
// answers or a shell runs.
package sshserver

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/crypto/ssh"
)

// Options configure a server.
type Options struct {
	Authorized []ssh.PublicKey   // keys that may log in; none: nobody may
	HostKey    ssh.Signer        // nil: a new one
	Run        func(Command) int // answers a command with its exit status; nil: 0 and no output
}

// Command is one command line that a client sent.
type Command struct {
	Context context.Context // ends with the connection
	Line    string
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Cut     func() // breaks the connection
}

// Server is a server on loopback that ends with the test.
type Server struct {
	Host    string
	Port    int
	HostKey ssh.PublicKey
}

// NewKey creates a new key pair.
func NewKey(t testing.TB) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must.NoError(t, err)
	s, err := ssh.NewSignerFromSigner(key)
	must.NoError(t, err)
	return s
}

// Home creates a temporary home folder with a new key in .ssh/id_ed25519, encrypted if there is a
// passphrase.
func Home(t testing.TB, passphrase string) (home string, key ssh.PublicKey) {
	t.Helper()
	home = t.TempDir()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	must.NoError(t, err)
	s, err := ssh.NewSignerFromSigner(private)
	must.NoError(t, err)
	var block *pem.Block
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(private, "test")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(private, "test", []byte(passphrase))
	}
	must.NoError(t, err)
	must.NoError(t, os.Mkdir(filepath.Join(home, ".ssh"), 0o700))
	must.NoError(t, os.WriteFile(filepath.Join(home, ".ssh", "id_ed25519"), pem.EncodeToMemory(block), 0o600))
	return home, s.PublicKey()
}

// Shell runs commands with sh and the home folder home, as another machine's SSH server would.
func Shell(home string, env ...string) func(Command) int {
	return func(c Command) int {
		cmd := exec.CommandContext(c.Context, "sh", "-c", c.Line)
		cmd.Dir, cmd.Env = home, append([]string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "USER=test"}, env...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
		cmd.WaitDelay = time.Second
		err := cmd.Run()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			return exit.ExitCode()
		}
		if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
			return 255
		}
		return 0
	}
}

// Start starts a server.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	if o.HostKey == nil {
		o.HostKey = NewKey(t)
	}
	if o.Run == nil {
		o.Run = func(Command) int { return 0 }
	}
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		for _, a := range o.Authorized {
			if string(a.Marshal()) == string(key.Marshal()) {
				return nil, nil
			}
		}
		return nil, errors.New("unknown key")
	}}
	config.AddHostKey(o.HostKey)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	host, port, err := net.SplitHostPort(l.Addr().String())
	must.NoError(t, err)
	s := &Server{Host: host, HostKey: o.HostKey.PublicKey()}
	s.Port, err = strconv.Atoi(port)
	must.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background()) // ends with the test
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(ctx, conn, config, o.Run) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		cancel()
		wg.Wait()
	})
	return s
}

func serve(ctx context.Context, conn net.Conn, config *ssh.ServerConfig, run func(Command) int) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { ssh.DiscardRequests(requests) })
	for c := range channels {
		switch c.ChannelType() {
		case "session":
			ch, in, err := c.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { session(ctx, ch, in, run, func() { conn.Close() }) })
		case "direct-tcpip":
			wg.Go(func() { forward(ctx, c) })
		default:
			_ = c.Reject(ssh.UnknownChannelType, "no such channel")
		}
	}
}

func session(ctx context.Context, ch ssh.Channel, requests <-chan *ssh.Request, run func(Command) int, cut func()) {
	defer ch.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	for r := range requests {
		if r.Type != "exec" {
			_ = r.Reply(false, nil)
			continue
		}
		var line struct{ Text string }
		if ssh.Unmarshal(r.Payload, &line) != nil {
			_ = r.Reply(false, nil)
			continue
		}
		_ = r.Reply(true, nil)
		wg.Go(func() {
			status := run(Command{ctx, line.Text, ch, ch, ch.Stderr(), cut})
			_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(status)}))
			ch.Close()
		})
	}
}

// forward connects a jump host's client to its destination.
func forward(ctx context.Context, c ssh.NewChannel) {
	var to struct {
		Host       string
		Port       uint32
		Origin     string
		OriginPort uint32
	}
	if ssh.Unmarshal(c.ExtraData(), &to) != nil || !strings.HasPrefix(to.Host, "127.") {
		_ = c.Reject(ssh.Prohibited, "loopback only")
		return
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(to.Host, strconv.Itoa(int(to.Port))))
	if err != nil {
		_ = c.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	defer conn.Close()
	ch, requests, err := c.Accept()
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { ssh.DiscardRequests(requests) })
	wg.Go(func() {
		_, _ = io.Copy(conn, ch)
		conn.Close()
	})
	_, _ = io.Copy(ch, conn)
	ch.Close()
}
