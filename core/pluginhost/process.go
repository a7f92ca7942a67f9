package pluginhost

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/confine"
	"github.com/rbee-project/rbee/core/rpc"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// markName is the environment variable that marks what a worker leaves behind.
const markName = "RBEE_WORKER_NONCE"

// maxSocketPath is the longest socket address on the strictest system, macOS.
const maxSocketPath = 103

// controlSocketName is as long as the longest name that go-plugin gives its socket.
const controlSocketName = "plugin1234567890"

// launch describes how to start one plugin process.
type launch struct {
	spec     Spec
	runDir   string // empty: a temporary folder
	engine   string // folder of the engine; empty: none
	logFile  string // empty: log lines go to the logger
	nonce    string // marks the process and its children; empty: no mark
	tethered bool
}

// process is a plugin process and the connection to it. Its creator must end or detach it.
type process struct {
	name    string // for messages: worker plugin "cpu"
	client  *goplugin.Client
	conn    *grpc.ClientConn
	run     *child
	address net.Addr
	keys    *ControlKeys // nil: the control socket is not encrypted
	runDir  string
}

const opLaunch = "launch plugin"

// start launches the process and returns when go-plugin has connected to it.
func (h *Host) start(ctx context.Context, l launch) (*process, error) {
	name := fmt.Sprintf("%s plugin %q", l.spec.Kind, l.spec.Name)
	if err := h.checkCode(name, l.spec); err != nil {
		return nil, err
	}
	at, err := h.makeSite(l)
	if err != nil {
		return nil, err
	}
	c := h.newChild(l, at)
	settings := h.clientConfig(l.spec.Kind, c, at.runDir)
	p := &process{name: name, client: goplugin.NewClient(settings), run: c, runDir: at.runDir}
	if err := h.connectTo(ctx, p, settings, l.spec.Executable); err != nil {
		return nil, err
	}
	return p, nil
}

// checkCode rejects a file that cannot be executed, and code whose digest differs from the
// configuration.
func (h *Host) checkCode(name string, s Spec) error {
	if err := checkExecutable(s.Executable); err != nil {
		return err
	}
	if s.SHA256 == "" {
		return nil
	}
	got, err := h.fresh(s)
	if err != nil {
		return core.Prefix(err, opLaunch)
	}
	if got != s.SHA256 {
		return core.Errorf(core.Integrity, "%s: %s: %s has the SHA-256 %s, and the configuration wants %s", opLaunch, name, s.Executable, got, s.SHA256).Hint(
			"If you replaced the executable yourself, put its new sha256 into the block %s %q.", s.Kind, s.Name)
	}
	return nil
}

// site is where a plugin runs: its folders, and its user, who has read access to its code.
type site struct {
	user    *confine.User // nil: this process's
	runDir  string
	home    string
	cleanup func() // removes what was made for this launch alone
}

func (h *Host) makeSite(l launch) (site, error) {
	owner := fmt.Sprintf("%s-%s", l.spec.Kind, l.spec.Name)
	at := site{user: h.userOf(owner, l.spec)}
	var err error
	if at.runDir, at.cleanup, err = h.runDir(l.runDir, at.user); err != nil {
		return site{}, err
	}
	at.home, err = h.home(owner, at.user)
	if err == nil {
		err = h.admitCode(at.user, l)
	}
	if err != nil {
		at.cleanup()
		return site{}, err
	}
	return at, nil
}

// newChild returns the process, not started yet, with its environment, walls and outputs.
func (h *Host) newChild(l launch, at site) *child {
	c := &child{nonce: l.nonce, cleanup: at.cleanup, released: make(chan struct{}), done: make(chan struct{})}
	if at.user != nil {
		c.user = at.user.UID
	}
	c.cmd = exec.Command(l.spec.Executable) //nolint:noctx // the process may outlive every context
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	env := h.userEnv(l.spec)
	confined := Confined{
		user: at.user, Executable: l.spec.Executable, Dir: at.runDir, Home: at.home, Read: h.reads(l.spec, env), Write: writes(l.spec, env),
	}
	c.cmd.Env = slices.Concat(env, h.hostEnv(l))
	c.out = &outputs{
		logFile: l.logFile, tethered: l.tethered, log: h.o.Logger.Named(filepath.Base(l.spec.Executable)),
		start: func(cmd *exec.Cmd) error { return h.StartConfined(cmd, confined) },
	}
	return c
}

// userEnv returns the part of the agent's environment that a plugin gets.
func (h *Host) userEnv(s Spec) []string {
	environ := h.o.Environ()
	env := pickEnv(s, environ)
	if h.o.Walls.Rules != nil {
		env = append(env, originFiles(filepath.Base(s.Executable), environ)...)
	}
	return env
}

// hostEnv returns the variables through which the host configures a plugin.
func (h *Host) hostEnv(l launch) []string {
	env := []string{
		"PYTHONDONTWRITEBYTECODE=1", // a plugin's folder stays as it is
		sdk.EnvLogLevel + "=" + h.o.Logger.GetLevel().String(),
	}
	if l.nonce != "" {
		env = append(env, markName+"="+l.nonce)
	}
	if l.tethered {
		env = append(env, sdk.EnvTether+"=1")
	}
	return env
}

// writes returns the folders beside its own that a plugin may write to.
func writes(s Spec, env []string) []string {
	write := s.plugin.Write
	if filepath.Base(s.Executable) == "rbee-worker-openai" { // its servers fetch models
		for _, name := range []string{"HF_HOME", "OLLAMA_MODELS"} {
			if v, ok := lookup(env, name); ok {
				write = append(slices.Clone(write), v)
			}
		}
	}
	return write
}

// clientConfig makes go-plugin run the child instead of a command that it starts itself.
func (h *Host) clientConfig(kind sdk.Kind, c *child, runDir string) *goplugin.ClientConfig {
	return &goplugin.ClientConfig{
		HandshakeConfig:  sdk.Handshake(),
		VersionedPlugins: h.versions(kind),
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		RunnerFunc: func(_ hclog.Logger, set *exec.Cmd, tempDir string) (runner.Runner, error) {
			// go-plugin created a folder for the socket. Use our private one, which has a shorter
			// path.
			_ = os.Remove(tempDir)
			c.cmd.Env = append(append(c.cmd.Env, set.Env...), goplugin.EnvUnixSocketDir+"="+runDir)
			return c, nil
		},
		SkipHostEnv:      true,
		UnixSocketConfig: &goplugin.UnixSocketConfig{TempDir: runDir},
		StartTimeout:     h.o.StartTimeout,
		GRPCDialOptions:  dialOptions(),
		AutoMTLS:         true,
		Logger:           hclog.NewNullLogger(), // go-plugin reports problems as errors
	}
}

// connectTo starts the child and connects to it. If it returns an error, including when the caller
// cancels, the process has exited.
func (h *Host) connectTo(ctx context.Context, p *process, settings *goplugin.ClientConfig, executable string) error {
	c := p.run
	stopWatch := context.AfterFunc(ctx, func() { _ = c.kill() })
	began := time.Now()
	var err error
	p.address, err = p.client.Start()
	if !c.started {
		stopWatch()
		c.cleanup()
		return launchError(p.name, executable, errors.Join(c.startErr, err))
	}
	if err == nil {
		p.keys, err = controlKeys(settings, c.stdout.firstLine())
	}
	if err == nil {
		err = p.connect()
	}
	if !stopWatch() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		return nil
	}
	late := time.Since(began) >= h.o.StartTimeout
	_ = c.kill()
	<-c.done
	if p.conn != nil {
		_ = p.conn.Close()
	}
	if ctx.Err() != nil {
		return core.Errorf(core.KindOf(context.Cause(ctx)), "%s: %s: %w", opLaunch, p.name, context.Cause(ctx))
	}
	return h.startError(p, err, late, c.out)
}

// fresh returns the SHA-256 of what a spec launches, read anew.
func (h *Host) fresh(s Spec) (string, error) {
	if s.Folder != "" {
		sum, err := h.folderDigest(s.Folder, true)
		return strings.TrimPrefix(sum, "sha256:"), err
	}
	sum, err := h.digest(s.Executable, true)
	return sum, core.WithKind(err, core.Internal)
}

// versions returns the protocols that this host speaks, for go-plugin to negotiate.
func (h *Host) versions(kind sdk.Kind) map[int]goplugin.PluginSet {
	sets := map[int]goplugin.PluginSet{}
	for _, v := range h.o.Protocols {
		sets[v] = goplugin.PluginSet{string(kind): &clientPlugin{}}
	}
	return sets
}

// protocolProblem explains why a plugin with a protocol version cannot be used, with a hint. ok
// reports that it can be used.
func (h *Host) protocolProblem(version int) (problem, hint string, ok bool) {
	ours := h.o.Protocols
	if slices.Contains(ours, version) {
		return "", "", true
	}
	texts := make([]string, 0, len(ours))
	for _, v := range ours {
		texts = append(texts, strconv.Itoa(v))
	}
	problem = fmt.Sprintf("speaks plugin protocol %d, and this rbee speaks %s: ", version, strings.Join(texts, " and "))
	if version > slices.Max(ours) {
		return problem + "it was made for a newer rbee", "Update rbee, or install a version of the plugin that was made for this version of rbee.", false
	}
	return problem + "it is too old", "Install a newer version of the plugin, one that was built with the plugin SDK of this version of rbee or the one before.", false
}

// clientPlugin satisfies go-plugin; the clients of the SDK are created from the connection itself.
type clientPlugin struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (*clientPlugin) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error { return sdk.ErrUnsupported }

func (*clientPlugin) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, sdk.ErrUnsupported
}

// dialOptions bound the memory that a plugin's messages can take in the host: a message on the
// wire, for which go-plugin's own streams allow 2 GiB, and its decoded form.
func dialOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(sdk.MaxReplyBytes), grpc.ForceCodecV2(rpc.Codec()))}
}

func (p *process) connect() error {
	protocol, err := p.client.Client()
	if err != nil {
		return err
	}
	grpcClient, ok := protocol.(*goplugin.GRPCClient)
	if !ok {
		return fmt.Errorf("go-plugin gave a %T: %w", protocol, sdk.ErrUnsupported)
	}
	p.conn = grpcClient.Conn
	p.run.mu.Lock()
	defer p.run.mu.Unlock()
	p.run.onGone = func() { _ = p.conn.Close() } // fails only if it is already closed
	if p.run.ended {
		p.run.onGone()
	}
	return nil
}

// admitCode gives a plugin's user read access to the code that is started.
func (h *Host) admitCode(u *confine.User, l launch) error {
	for _, path := range []string{cmp.Or(l.spec.Folder, l.spec.Executable), l.spec.Executable, l.engine} {
		if err := h.admit(u, path); err != nil {
			return err
		}
	}
	return nil
}

// PrivateDir returns the folder of a worker's sockets in its run folder. The rest of the run folder
// belongs to the host: plugins cannot replace the files that it reads and writes there.
func PrivateDir(runDir string) string { return filepath.Join(runDir, "p") }

// runDir creates the private folder of the sockets, owned by the user.
func (h *Host) runDir(dir string, user *confine.User) (path string, cleanup func(), err error) {
	const op = "run folder"
	if dir == "" {
		if h.o.RunDir != "" {
			if err := os.MkdirAll(h.o.RunDir, 0o700); err != nil {
				return "", nil, core.Wrap(err, core.Internal, op)
			}
		}
		if path, err = os.MkdirTemp(h.o.RunDir, "p"); err != nil {
			return "", nil, core.Wrap(err, core.Internal, op)
		}
		made := path
		dir, cleanup = path, func() { _ = os.RemoveAll(made) }
	} else {
		path, cleanup = PrivateDir(dir), func() {}
		if err := os.MkdirAll(path, 0o700); err != nil {
			return "", nil, core.Wrap(err, core.Internal, op)
		}
	}
	info, err := os.Lstat(dir)
	switch {
	case err != nil:
		err = core.Wrap(err, core.Internal, op)
	case !info.IsDir() || info.Mode().Perm()&0o067 != 0 || info.Mode().Perm()&0o010 != 0 && user == nil:
		err = core.Errorf(core.Forbidden, "%s: %s is not a folder that only its owner can enter (its mode is %s)", op, dir, info.Mode()).Hint("Run: chmod 700 %s", dir)
	case len(filepath.Join(path, controlSocketName)) > maxSocketPath:
		err = core.Errorf(core.Invalid, "%s: %s is too long a path for sockets: %d bytes, at most %d fit", op, path, len(path), maxSocketPath-len(controlSocketName)-1).Hint("Set data_dir to a shorter path.")
	default:
		err = h.give(user, path)
	}
	if err != nil {
		cleanup()
		return "", nil, err
	}
	return path, cleanup, nil
}

// letGo detaches from the process, which keeps running unless it is tethered. It is idempotent.
func (p *process) letGo() {
	p.run.release.Do(func() {
		close(p.run.released)
		_ = p.conn.Close() // fails only if it is already closed
		if p.run.tether != nil {
			_ = p.run.tether.Close()
		}
	})
}
