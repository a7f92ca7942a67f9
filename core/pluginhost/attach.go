package pluginhost

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/hostinfo"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// attachTimeout bounds how long a worker may take to answer a reattachment. Callers may have less
// patience: a busy machine is no reason to give a worker up.
const attachTimeout = 30 * time.Second

// Attachment is what is needed to find a running worker again. It is JSON-able.
type Attachment struct {
	Process    hostinfo.Identity `json:"process"`
	User       uint32            `json:"user,omitempty"` // uid that it runs as; 0: its host's
	Executable string            `json:"executable"`     // path at launch
	Digest     string            `json:"digest"`         // of the executable at launch: "sha256:<hex>"
	// Runs is the digest of the program that the process ran once it had been configured, such as a
	// script's interpreter. Empty: that of the executable.
	Runs    string `json:"runs,omitempty"`
	Network string `json:"network"` // of the control socket
	Address string `json:"address"`
	// Control holds the secret keys of the control socket; nil: it is not encrypted.
	Control    *ControlKeys `json:"control,omitempty"`
	Protocol   int          `json:"protocol"`
	Type       string       `json:"type"` // worker type
	WorkerID   string       `json:"worker_id"`
	Nonce      string       `json:"nonce"`
	RunDir     string       `json:"run_dir"`
	DataSocket string       `json:"data_socket"`
	// DataOpening is the secret that connections to the data socket begin with if the worker
	// demands it. Empty: nothing.
	DataOpening string `json:"data_opening,omitempty"`
	EngineDir   string `json:"engine_dir,omitempty"`
	LogFile     string `json:"log_file,omitempty"`
}

// Reattach takes over a worker that this or an earlier host launched: same process (pid, start
// time, boot), same executable, and Status answers within attachTimeout with the same worker id and
// nonce. It sends no signals. Errors: NotFound when the process has exited or is another one,
// Conflict when it answers for another worker or was never started, Unsupported for a protocol that
// this host does not speak, Unavailable when it does not answer.
func (h *Host) Reattach(ctx context.Context, a Attachment) (*Worker, error) {
	const op = "re-attach worker"
	name := fmt.Sprintf("worker plugin %q", a.Type)
	if problem, hint, ok := h.protocolProblem(a.Protocol); !ok {
		return nil, core.Errorf(core.Unsupported, "%s: worker %s %s", op, a.WorkerID, problem).Hint("%s", hint)
	}
	if a.Network != "unix" {
		return nil, core.Errorf(core.Invalid, "%s: worker %s: %q is no network of a control socket", op, a.WorkerID, a.Network)
	}
	if err := h.sameExecutable(a); err != nil {
		return nil, err
	}
	keys, err := a.Control.Config()
	if err != nil {
		return nil, core.Errorf(core.Invalid, "%s: worker %s: %w", op, a.WorkerID, err)
	}
	c := &child{id: a.Process, user: a.User, nonce: a.Nonce, released: make(chan struct{}), done: make(chan struct{})}
	addr := &net.UnixAddr{Name: a.Address, Net: a.Network}
	p := &process{name: name, run: c, address: addr, runDir: a.RunDir}
	p.client = goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  sdk.Handshake(),
		Plugins:          h.versions(sdk.KindWorker)[a.Protocol],
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		Logger:           hclog.NewNullLogger(),
		GRPCDialOptions:  dialOptions(),
		TLSConfig:        keys,
		Reattach: &goplugin.ReattachConfig{
			Protocol: goplugin.ProtocolGRPC, ProtocolVersion: a.Protocol, Addr: addr, Pid: a.Process.PID,
			ReattachFunc: func() (runner.AttachedRunner, error) { return c, nil },
		},
	})
	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	go c.watch()
	w, err := h.answers(ctx, p, a)
	if err != nil {
		if p.conn != nil {
			p.letGo()
		} else {
			c.release.Do(func() { close(c.released) })
		}
		return nil, err
	}
	return w, nil
}

// answers checks that the process behind the socket is the worker of the attachment.
func (h *Host) answers(ctx context.Context, p *process, a Attachment) (*Worker, error) {
	const op = "re-attach worker"
	conn, err := (&net.Dialer{}).DialContext(ctx, a.Network, a.Address)
	if err != nil {
		return nil, core.Errorf(core.Unavailable, "%s: worker %s, process %d: control socket: %w", op, a.WorkerID, a.Process.PID, err)
	}
	_ = conn.Close()
	if err := p.connect(); err != nil {
		return nil, core.Errorf(core.Unavailable, "%s: worker %s, process %d: %w", op, a.WorkerID, a.Process.PID, err)
	}
	client := worker.NewClient(p.conn)
	st, err := client.Status(ctx)
	if ctx.Err() != nil {
		return nil, core.Errorf(core.Unavailable, "%s: worker %s, process %d does not answer within %s", op, a.WorkerID, a.Process.PID, attachTimeout)
	}
	if err != nil {
		return nil, core.Errorf(core.Unavailable, "%s: worker %s, process %d: %w", op, a.WorkerID, a.Process.PID, err)
	}
	if st.WorkerID != a.WorkerID || st.Nonce != a.Nonce || a.Nonce == "" {
		return nil, core.Errorf(core.Conflict, "%s: process %d answers for worker %q, not for %q as it was started", op, a.Process.PID, st.WorkerID, a.WorkerID)
	}
	info, err := client.Info(ctx)
	if err != nil {
		return nil, core.Errorf(core.Unavailable, "%s: worker %s, process %d: %w", op, a.WorkerID, a.Process.PID, err)
	}
	w := &Worker{p: p, client: client, info: info, at: a, engine: a.EngineDir, admitModel: func(string) error { return nil }}
	w.guarded.Store(st.DataGuarded)
	return w, nil
}

// sameExecutable checks that the process is the attachment's and runs the executable that was
// launched.
func (h *Host) sameExecutable(a Attachment) error {
	const op = "re-attach worker"
	if now, err := hostinfo.Identify(a.Process.PID); err != nil || now != a.Process {
		return core.Errorf(core.NotFound, "%s: worker %s is gone: there is no process %d that started when it did", op, a.WorkerID, a.Process.PID)
	}
	path := runningFile(a.Process.PID)
	if path == "" {
		path = a.Executable
	}
	got, err := h.digest(path, false)
	if err != nil {
		return core.Errorf(core.NotFound, "%s: worker %s, process %d: its executable cannot be read: %w", op, a.WorkerID, a.Process.PID, err)
	}
	if "sha256:"+got != cmp.Or(a.Runs, a.Digest) {
		return core.Errorf(core.NotFound, "%s: process %d runs another executable than worker %s did", op, a.Process.PID, a.WorkerID)
	}
	return nil
}

// runningFile returns a path of the program that a process runs, even if its file has been replaced
// since; empty: not supported on this system.
func runningFile(pid int) string {
	if runtime.GOOS != "linux" {
		return ""
	}
	return "/proc/" + strconv.Itoa(pid) + "/exe"
}

// EndAttachment kills the process group of a worker that cannot be taken over, if it is still the
// same process, and waits until it has exited. It reports whether there was a process to kill. It
// also ends what a dead worker left behind. Errors: ctx's, Forbidden.
func (h *Host) EndAttachment(ctx context.Context, a Attachment) (bool, error) {
	const op = "end worker"
	p, err := hostinfo.Open(a.Process, a.User)
	if core.KindOf(err) == core.NotFound {
		return false, endMarked(a.Nonce, a.User)
	}
	if err != nil {
		return false, err
	}
	defer p.Close()
	if err := h.sameExecutable(a); err != nil {
		if core.KindOf(err) == core.NotFound {
			return false, nil // the pid was reused
		}
		return false, err
	}
	if err := p.KillGroup(); err != nil && core.KindOf(err) != core.NotFound {
		return false, err
	}
	gone := make(chan bool, 1)
	released := make(chan struct{})
	go func() { gone <- waitGone(a.Process, released) }()
	select {
	case <-gone:
	case <-ctx.Done():
		close(released)
		<-gone
		return true, fmt.Errorf("%s: %w", op, core.FromContext(ctx))
	}
	return true, endMarked(a.Nonce, a.User)
}

func endMarked(nonce string, user uint32) error {
	if nonce == "" {
		return nil
	}
	_, err := hostinfo.KillMarked(markName+"="+nonce, user)
	return err
}
