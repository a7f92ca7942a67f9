package queen

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
)

// The status shows when the first certificate expires, and names those not renewed in time.
func TestStatusCertificates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var ahead atomic.Int64
		s := newSecured(t, func(o *Options) { o.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) } })
		_, err := s.tryJoin(newMachine(t, "bbbbbbbb", "beta", s.joinToken(core.RoleHive), "hive"))
		must.NoError(t, err)
		n, ok := s.q.Registry.View().Node(nil, "bbbbbbbb")
		must.True(t, ok)
		must.False(t, n.CertificateExpiresAt.IsZero())
		problems := func() []string {
			first, list := s.q.Members.Certificates(s.q.Registry.View())
			must.True(t, first.Equal(n.CertificateExpiresAt))
			return list
		}
		must.SliceEmpty(t, problems())
		status, err := s.q.Status(t.Context())
		must.NoError(t, err)
		must.True(t, status.CertificatesEnd.Equal(n.CertificateExpiresAt))
		ahead.Store(int64(time.Until(n.CertificateExpiresAt) - s.q.opts.Network.CertificateTTL/4 + time.Minute))
		must.Len(t, 1, problems())
		must.StrContains(t, problems()[0], "the certificate of beta ends on "+n.CertificateExpiresAt.UTC().Format(time.DateOnly))
		ahead.Add(int64(s.q.opts.Network.CertificateTTL / 4))
		must.Len(t, 1, problems())
		must.StrContains(t, problems()[0], "the certificate of beta has ended")
		must.NoError(t, s.q.Registry.Write(t.Context(), "", fsm.RevokeNode("bbbbbbbb")))
		first, list := s.q.Members.Certificates(s.q.Registry.View())
		must.True(t, first.IsZero())
		must.SliceEmpty(t, list)
	})
}
