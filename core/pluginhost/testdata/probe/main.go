// Command probe is a plugin that misbehaves as the environment variable PROBE asks. The tests of
// pluginhost build and use it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

func main() {
	mode, arg, _ := strings.Cut(os.Getenv("PROBE"), ":")
	switch mode {
	case "silent-exit":
		os.Exit(7)
	case "complain":
		fmt.Fprintln(os.Stderr, "error while loading shared libraries: libfoo.so.1")
		os.Exit(127)
	case "hang":
		fmt.Fprintln(os.Stderr, "waiting for something")
		time.Sleep(time.Hour)
	case "chatter":
		fmt.Println("hello, I am no plugin")
		time.Sleep(time.Hour)
	case "cookie":
		_ = os.Setenv(sdk.EnvCookie, "another")
	case "protocol":
		goplugin.Serve(&goplugin.ServeConfig{
			HandshakeConfig:  sdk.Handshake(),
			VersionedPlugins: map[int]goplugin.PluginSet{7: {"worker": &nothing{}}},
			GRPCServer:       goplugin.DefaultGRPCServer,
		})
		return
	case "escape":
		// This is a child in its own session: a signal to the parent's group does not reach it.
		child := exec.Command("sleep", "600")
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := child.Start(); err != nil {
			panic(err)
		}
		if err := os.WriteFile(arg, []byte(fmt.Sprint(child.Process.Pid)), 0o600); err != nil {
			panic(err)
		}
	case "read": // reads a file, and writes the outcome to the run folder
		said := "read"
		if _, err := os.ReadFile(arg); err != nil {
			said = err.Error()
		}
		if err := os.WriteFile(os.Getenv(goplugin.EnvUnixSocketDir)+"/said", []byte(said+"\n"+os.Getenv("TMPDIR")), 0o600); err != nil {
			panic(err)
		}
	case "tries": // one try a line; writes each outcome to the run folder
		var said []string
		for try := range strings.SplitSeq(arg, "\n") {
			said = append(said, try+": "+outcome(try))
		}
		if err := os.WriteFile(os.Getenv(goplugin.EnvUnixSocketDir)+"/said", []byte(strings.Join(said, "\n")), 0o600); err != nil {
			panic(err)
		}
	case "env":
		if err := os.WriteFile(arg, []byte(strings.Join(os.Environ(), "\n")), 0o600); err != nil {
			panic(err)
		}
	}
	worker.Serve(&plugin{mode: mode})
}

// outcome makes one try, and returns its outcome.
func outcome(try string) string {
	verb, arg, _ := strings.Cut(try, " ")
	var err error
	switch verb {
	case "read":
		_, err = os.ReadFile(arg)
	case "write":
		err = os.WriteFile(arg, []byte("x"), 0o600)
	case "signal":
		err = syscall.Kill(os.Getppid(), 0)
	case "env":
		return os.Getenv(arg)
	case "user":
		groups, _ := os.Getgroups()
		return fmt.Sprint(os.Getuid(), os.Getgid(), groups)
	}
	if errors.Is(err, fs.ErrPermission) {
		return "refused"
	}
	if err != nil {
		return err.Error()
	}
	return "done"
}

type nothing struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (*nothing) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error { return nil }

func (*nothing) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("no client")
}

type plugin struct{ mode string }

func (p *plugin) Info(ctx context.Context) (sdk.Info, error) {
	switch p.mode {
	case "info-hang":
		<-ctx.Done()
		return sdk.Info{}, ctx.Err()
	case "info-panic":
		panic("out of honey")
	case "kind":
		return sdk.Info{Name: "probe", Kind: sdk.KindCatalog}, nil
	}
	return sdk.Info{Name: "probe", Kind: sdk.KindWorker, Version: "1"}, nil
}

func (p *plugin) Schema(context.Context) (sdk.Schema, error) {
	if p.mode == "schema" {
		return sdk.Schema{Attributes: []sdk.Attribute{{Name: "x", Type: "strnig"}}}, nil
	}
	return sdk.Schema{Attributes: []sdk.Attribute{{Name: "tags", Type: "map(string)", Default: json.RawMessage("{}")}}}, nil
}

func (p *plugin) Configure(context.Context, sdk.Config) (sdk.Diagnostics, error) { return nil, nil }

func (p *plugin) Fingerprint(ctx context.Context, emit func(worker.Fingerprint) error) error {
	if p.mode == "mute" {
		return nil
	}
	if err := emit(worker.Fingerprint{}); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func (p *plugin) Start(_ context.Context, _ worker.StartSpec, progress func(worker.Progress) error) (http.Handler, error) {
	switch p.mode {
	case "start-crash":
		fmt.Fprintln(os.Stderr, "the engine fell over")
		_ = syscall.Kill(os.Getpid(), syscall.SIGABRT)
		time.Sleep(time.Hour)
	case "start-nil":
		return nil, nil
	case "start-too-large":
		return nil, sdk.WithHint(fmt.Errorf("model needs 12 GiB, 8 GiB are free: %w", sdk.ErrTooLarge), "Use fewer slots.")
	}
	return http.NotFoundHandler(), nil
}

func (p *plugin) Status(context.Context) (worker.Status, error) { return worker.Status{}, nil }
func (p *plugin) Drain(context.Context) error                   { return nil }

func (p *plugin) Stop(ctx context.Context, _ time.Duration) error {
	if p.mode == "stop-hang" {
		<-ctx.Done()
		time.Sleep(time.Hour)
	}
	return nil
}
