package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/rbee-project/rbee/core/pluginhost"
	workerv1 "github.com/rbee-project/rbee/proto/worker/v1"
)

// handle is the part of a worker's handle file that these tests read.
type handle struct {
	Attachment pluginhost.Attachment `json:"attachment"`
}

// dialWorker connects to a worker's data socket as its hive does.
func dialWorker(ctx context.Context, a pluginhost.Attachment) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", a.DataSocket)
	if err == nil {
		_, err = io.WriteString(c, a.DataOpening)
	}
	return c, err
}

// handles returns the handle files of the agent's workers.
func (a *agent) handles() []handle {
	a.t.Helper()
	files, err := filepath.Glob(filepath.Join(a.dir, "hive", "workers", "*.json"))
	must.NoError(a.t, err)
	var list []handle
	for _, f := range files {
		b, err := os.ReadFile(f)
		if os.IsNotExist(err) {
			continue
		}
		must.NoError(a.t, err)
		var h handle
		must.NoError(a.t, json.Unmarshal(b, &h))
		list = append(list, h)
	}
	return list
}

// workerStatus asks the agent's only worker directly, bypassing queen and hive, how many requests
// it works on.
func workerStatus(t testing.TB, a *agent) func(testing.TB) int {
	t.Helper()
	list := a.handles()
	must.Len(t, 1, list)
	keys, err := list[0].Attachment.Control.Config()
	must.NoError(t, err)
	conn, err := grpc.NewClient("unix:"+list[0].Attachment.Address, grpc.WithTransportCredentials(credentials.NewTLS(keys)))
	must.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	c := workerv1.NewWorkerServiceClient(conn)
	return func(t testing.TB) int {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		s, err := c.Status(ctx, &workerv1.StatusRequest{})
		must.NoError(t, err)
		return int(s.GetActive())
	}
}

var slow struct {
	once sync.Once
	dir  string
	err  error
}

// slowModel returns a GGUF file with random weights that generates for many seconds where rbee-tiny
// takes half a second.
func slowModel(t testing.TB) string {
	t.Helper()
	slow.once.Do(func() {
		if slow.dir, slow.err = os.MkdirTemp("", "rbee-slow"); slow.err != nil { //nolint:usetesting // several tests share it
			return
		}
		// The first test that needs it waits for it; TestMain removes the folder.
		cmd := exec.Command("go", "run", "../../../core/coretest/ggufgen", "-preset", "15m", "-layers", "12", "-ctx", "8192", "-out", filepath.Join(slow.dir, "slow.gguf"))
		cmd.Stderr = os.Stderr
		slow.err = cmd.Run()
	})
	must.NoError(t, slow.err)
	return filepath.Join(slow.dir, "slow.gguf")
}

// slowDir returns the folder of the slow model.
func slowDir(t testing.TB) string {
	t.Helper()
	return filepath.Dir(slowModel(t))
}

func TestMain(m *testing.M) {
	if socket := os.Getenv(echoSocket); socket != "" {
		if err := echo(socket); err != nil {
			os.Exit(1)
		}
		return
	}
	wrong, err := validateAnswers()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	for _, problem := range wrong() {
		fmt.Fprintln(os.Stderr, problem)
		code = 1
	}
	if slow.dir != "" {
		_ = os.RemoveAll(slow.dir)
	}
	os.Exit(code)
}

// patient returns a context that bounds the waits beside what the test measures.
func patient(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience+30*time.Second)
	t.Cleanup(cancel)
	return ctx
}
