package agent

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
)

// A copy of a data folder does not run beside its original; an unrelated process at the address
// does not matter.
func TestTwin(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	files, _ := filesOf(t, time.Hour)
	others, _ := filesOf(t, time.Hour) // signed by another CA
	load := func(f pki.Files) *pki.Identity {
		f.RPCAddress = l.Addr().String()
		id, err := pki.LoadFiles(f)
		must.NoError(t, err)
		return id
	}
	id := load(pki.Files{CA: files.CAFile, Certificate: files.CertFile, Key: files.KeyFile})
	other := load(pki.Files{CA: others.CAFile, Certificate: others.CertFile, Key: others.KeyFile})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := tls.NewListener(l, id.ServerConfig("h2")).Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).HandshakeContext(t.Context())
			conn.Close()
		}
	}()
	err = noTwin(t.Context(), id)
	must.Eq(t, core.InUse, core.KindOf(err))
	must.StrContains(t, core.HintOf(err), "copy")
	must.NoError(t, noTwin(t.Context(), other))
	must.NoError(t, l.Close())
	<-done
	must.NoError(t, noTwin(t.Context(), id))
}
