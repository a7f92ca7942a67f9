package agent

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pki"
)

// A queen renews its certificate while it runs: new connections see the new certificate, existing
// ones stay open, and the next start finds the new certificate on disk.
func TestRenewal(t *testing.T) {
	if testing.Short() {
		t.Skip("a certificate's life takes seconds")
	}
	t.Parallel()
	dir, host := t.TempDir(), fmt.Sprintf("127.%d.%d.1", 1+rand.IntN(254), rand.IntN(256)) // the ports are the default ones
	cfg, diags := config.Load(nil, func(name string) (string, bool) {
		v, ok := map[string]string{"RBEE_DATA_DIR": dir, "RBEE_STORE_DIR": t.TempDir(), "RBEE_BIND_ADDRESS": host, "RBEE_HIVE_ENABLED": "false"}[name]
		return v, ok
	})
	must.False(t, diags.HasErrors(), must.Sprint(diags))
	const life = 6 * time.Second
	cfg.Queen.CertificateTTL = life // below the minimum for a configuration file
	began := time.Now()
	_, err := Init(t.Context(), cfg, "", began)
	must.NoError(t, err)
	first, err := pki.Load(dir)
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
		t.Fatalf("the agent ended: %v", err)
	}
	old, err := tls.Dial("tcp", address, &tls.Config{RootCAs: first.Roots(), MinVersion: tls.VersionTLS13})
	must.NoError(t, err)
	defer old.Close()
	reader := bufio.NewReader(old)
	ask := func() {
		_, err := fmt.Fprintf(old, "GET /healthz HTTP/1.1\r\nHost: %s\r\n\r\n", address)
		must.NoError(t, err)
		resp, err := http.ReadResponse(reader, nil)
		must.NoError(t, err)
		_, err = io.Copy(io.Discard, resp.Body)
		must.NoError(t, err)
		must.NoError(t, resp.Body.Close())
		must.Eq(t, http.StatusOK, resp.StatusCode)
	}
	ask()
	var shown []*x509.Certificate
	coretest.Eventually(t, 30*time.Second, func() error {
		conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: first.Roots(), MinVersion: tls.VersionTLS13})
		if err != nil {
			t.Fatalf("a client is refused after %s: %v", time.Since(began), err)
		}
		defer conn.Close()
		cert := conn.ConnectionState().PeerCertificates[0]
		if n := len(shown); n == 0 || !shown[n-1].Equal(cert) {
			shown = append(shown, cert)
		}
		if len(shown) < 3 {
			return errors.New("it has not been renewed twice")
		}
		return nil
	})
	took := time.Since(began)
	must.Greater(t, life, took) // the first certificate has expired by now
	for _, c := range shown {
		must.Less(t, life+time.Second, c.NotAfter.Sub(c.NotBefore)-time.Hour)
	}
	must.Eq(t, shown[0].RawSubjectPublicKeyInfo, shown[2].RawSubjectPublicKeyInfo)
	t.Logf("renewed twice in %s, at %v", took, []time.Time{shown[0].NotAfter, shown[1].NotAfter, shown[2].NotAfter})

	ask()
	kept, err := pki.Load(dir)
	must.NoError(t, err)
	must.True(t, kept.Node().NotAfter.After(first.Node().NotAfter))
}

// A machine sleeps for weeks while its timers stand still. Its certificate is renewed within an
// hour of waking up, and not earlier than due.
func TestRenewalAfterSleep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var slept atomic.Int64
		start := time.Now()
		now := func() time.Time { return time.Now().Add(time.Duration(slept.Load())) }
		due := start.Add(60 * 24 * time.Hour)
		renewed := make(chan time.Time, 10)
		r := renewal{
			now: now, due: func() time.Time { return due }, expires: func() time.Time { return due.Add(time.Hour) },
			renew: func(context.Context) error { due = due.Add(60 * 24 * time.Hour); renewed <- time.Now(); return nil },
			log:   hclog.NewNullLogger(),
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.run(ctx, false) }()
		time.Sleep(24 * time.Hour)
		must.Eq(t, 0, len(renewed))
		slept.Store(int64(70 * 24 * time.Hour))
		time.Sleep(renewLook + time.Second)
		must.Eq(t, 1, len(renewed))
		<-renewed
		time.Sleep(24 * time.Hour)
		must.Eq(t, 0, len(renewed))
		cancel()
		must.ErrorIs(t, <-ended, context.Canceled)
	})
}
