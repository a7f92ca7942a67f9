package agent

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gateway"
	"github.com/rbee-project/rbee/core/operation"
)

// LocalSocket returns the path of the unix socket in a data folder. On it an agent shows its own
// user what runs on this machine, even if no queen can be reached, and a queen of a cluster issues
// tokens: gateway.LocalHandler.
func LocalSocket(dataDir string) string { return filepath.Join(dataDir, "run", "agent.sock") }

// serveLocal serves the local socket until ctx ends. The data folder is locked, so an existing
// socket belongs to a dead agent.
func (p *process) serveLocal(ctx context.Context) error {
	const op = "serve the local socket"
	path := LocalSocket(p.cfg.DataDir)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return core.Wrap(err, core.Internal, op)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return core.Wrap(err, core.Internal, op)
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "unix", path) // in a folder that only this user may enter
	if err != nil {
		return core.Wrap(err, core.Internal, op)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return core.Wrap(errors.Join(err, l.Close()), core.Internal, op)
	}
	var bees operation.Answerer
	if p.bees != nil {
		bees = p.bees
	}
	var tokens *gateway.LocalTokens
	if p.queen != nil && p.net != nil {
		tokens = &gateway.LocalTokens{Create: p.queen.Tokens.CreateToken, Proof: p.net.identity.Proof, Told: func(ctx context.Context, made core.Token) {
			p.log.Warn("token made through the local socket", "token", made.ID, "kind", made.Kind, "name", made.Name, "scopes", made.Scopes, "roles", made.Roles, "by", peerOf(ctx))
		}}
	}
	var standing func() core.Standing
	if p.net != nil {
		standing = p.net.Standing
	}
	srv := &http.Server{Handler: gateway.LocalHandler(bees, tokens, standing), ConnContext: withPeer, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 64 << 10}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return core.Wrap(err, core.Internal, op)
	case <-ctx.Done():
	}
	_ = srv.Close() // its answers are short; aborting them loses nothing
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return core.Wrap(err, core.Internal, op)
	}
	return nil
}
