package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pki"
)

// A hive that was off until its certificate expired reports this when it starts, and rejoins with a
// new token under its previous ID.
func TestRejoinAfterCertificateEnded(t *testing.T) {
	if testing.Short() {
		t.Skip("a certificate's life takes seconds")
	}
	t.Parallel()
	prefix := fmt.Sprintf("127.%d.%d.", 1+rand.IntN(254), rand.IntN(256)) // default ports
	configured := func(dir, host, queen string) *config.Config {
		env := map[string]string{"RBEE_DATA_DIR": dir, "RBEE_STORE_DIR": t.TempDir(), "RBEE_BIND_ADDRESS": host, "RBEE_QUEEN_ENABLED": queen, "RBEE_HIVE_ENABLED": map[string]string{"true": "false", "false": "true"}[queen], "RBEE_NAME": "ant" + queen}
		cfg, diags := config.Load(nil, func(name string) (string, bool) { v, ok := env[name]; return v, ok })
		must.NoError(t, diags.Err())
		return cfg
	}
	cfg := configured(t.TempDir(), prefix+"1", "true")
	cfg.Queen.CertificateTTL = 5 * time.Second // below the minimum for a configuration file
	made, err := Init(t.Context(), cfg, "", time.Now())
	must.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ready, ended := make(chan string, 1), make(chan error, 1)
	go func() {
		ended <- Run(ctx, cfg, Options{Version: "test", Logger: coretest.Logger(t), Ready: func(a string) { ready <- a }})
	}()
	t.Cleanup(func() {
		stop()
		must.NoError(t, <-ended)
	})
	var address string
	select {
	case address = <-ready:
	case err := <-ended:
		ended <- err
		t.Fatalf("the queen ended: %v", err)
	}
	queen, err := pki.Load(cfg.DataDir)
	must.NoError(t, err)
	c, err := client.New(client.Options{Addresses: []string{"https://" + address}, CACert: queen.CAPEM(), Token: made.Token})
	must.NoError(t, err)
	t.Cleanup(c.Close)
	join := func(hive *config.Config) error {
		made, err := c.CreateToken(t.Context(), core.TokenRequest{Kind: core.TokenJoin, Roles: []core.Role{core.RoleHive}})
		must.NoError(t, err)
		return Join(t.Context(), hive, made.Secret+"@"+net.JoinHostPort(prefix+"1", "7834"))
	}
	hive := configured(t.TempDir(), prefix+"2", "false")
	must.NoError(t, join(hive))
	first, err := pki.Load(hive.DataDir)
	must.NoError(t, err)
	must.Eq(t, core.Conflict, core.KindOf(join(hive))) // it is already a member

	coretest.Eventually(t, 20*time.Second, func() error {
		if first.Check(time.Now()) == nil {
			return errors.New("the certificate has not ended yet")
		}
		return nil
	})
	must.ErrorContains(t, Run(t.Context(), hive, Options{Version: "test"}), "it ended on")
	must.NoError(t, join(hive))
	again, err := pki.Load(hive.DataDir)
	must.NoError(t, err)
	must.NoError(t, again.Check(time.Now()))
	must.Eq(t, first.Node().ID, again.Node().ID)
	must.Eq(t, first.Node().KeyHash, again.Node().KeyHash)
}
