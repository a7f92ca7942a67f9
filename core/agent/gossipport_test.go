package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/token"
)

// configured returns the configuration that the environment variables produce.
func configured(t *testing.T, variables ...string) *config.Config {
	t.Helper()
	env := map[string]string{"RBEE_STORE_DIR": t.TempDir(), "RBEE_HIVE_ENABLED": "false", "RBEE_QUEEN_ENABLED": "true"}
	for i := 0; i < len(variables); i += 2 {
		env[variables[i]] = variables[i+1]
	}
	cfg, diags := config.Load(nil, func(name string) (string, bool) { v, ok := env[name]; return v, ok })
	must.NoError(t, diags.Err())
	return cfg
}

// running runs an agent until the test ends, and returns the address of its API.
func running(t *testing.T, cfg *config.Config) string {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ready, ended := make(chan string, 1), make(chan error, 1)
	go func() {
		ended <- Run(ctx, cfg, Options{Version: "test", Logger: coretest.Logger(t), Ready: func(a string) { ready <- a }})
	}()
	t.Cleanup(func() {
		stop()
		must.NoError(t, <-ended)
	})
	select {
	case address := <-ready:
		return address
	case err := <-ended:
		ended <- err
		t.Fatalf("the agent ended: %v", err)
		return ""
	}
}

// Two agents on one machine with different gossip ports find each other.
func TestDifferentGossipPorts(t *testing.T) {
	t.Parallel()
	host := fmt.Sprintf("127.%d.%d.1", 1+rand.IntN(254), rand.IntN(256)) // all its ports are free
	first := configured(t, "RBEE_DATA_DIR", t.TempDir(), "RBEE_BIND_ADDRESS", host, "RBEE_NAME", "one")
	made, err := Init(t.Context(), first, "", time.Now())
	must.NoError(t, err)
	address := running(t, first)
	queen, err := pki.Load(first.DataDir)
	must.NoError(t, err)
	c, err := client.New(client.Options{Addresses: []string{"https://" + address}, CACert: queen.CAPEM(), Token: made.Token})
	must.NoError(t, err)
	t.Cleanup(c.Close)
	join, err := c.CreateToken(t.Context(), core.TokenRequest{Kind: core.TokenJoin, Roles: []core.Role{core.RoleQueen}})
	must.NoError(t, err)

	second := configured(t, "RBEE_DATA_DIR", t.TempDir(), "RBEE_BIND_ADDRESS", host, "RBEE_NAME", "two",
		"RBEE_BIND_HTTP_PORT", "7933", "RBEE_BIND_RPC_PORT", "7934", "RBEE_BIND_GOSSIP_PORT", "7935")
	must.NoError(t, Join(t.Context(), second, join.Secret+"@"+net.JoinHostPort(host, "7834")))
	running(t, second)
	coretest.Eventually(t, time.Minute, func() error {
		s, err := c.Status(t.Context())
		if err != nil {
			return err
		}
		alive := 0
		for _, q := range s.Queens {
			if q.Gossip == "alive" {
				alive++
			}
		}
		if alive != 2 {
			return fmt.Errorf("%d of two queens are alive by gossip: %+v", alive, s.Queens)
		}
		return nil
	})
}

// A machine that advertises a foreign address is refused before it uses up its token: the others
// would send its traffic to another machine.
func TestJoinForeignAddress(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	asked := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_ = conn.Close()
		}
		asked <- err
	}()
	_, _, made := token.NewJoin(strings.Repeat("abcdefghijklmnopqrstuvwxyz234567", 2)[:52])
	for _, foreign := range []string{"192.0.2.7", "2001:db8::7", "localhost"} {
		cfg := configured(t, "RBEE_DATA_DIR", filepath.Join(t.TempDir(), "data"), "RBEE_BIND_ADDRESS", "127.0.0.1", "RBEE_BIND_ADVERTISE", foreign)
		err = Join(t.Context(), cfg, made+"@"+l.Addr().String())
		must.Eq(t, core.Invalid, core.KindOf(err), must.Sprint(err))
		must.NotEq(t, "", core.HintOf(err))
		_, err = pki.Load(cfg.DataDir)
		must.Eq(t, core.NotFound, core.KindOf(err))
	}
	must.NoError(t, l.Close())
	must.True(t, errors.Is(<-asked, net.ErrClosed), must.Sprint("a queen was asked"))
}
