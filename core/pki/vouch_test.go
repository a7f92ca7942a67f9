package pki_test

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
)

// A node proves over one connection that it holds the key of its certificate, even an expired one;
// no other node can, and the proof is not valid over another connection.
func TestVouch(t *testing.T) {
	t.Parallel()
	ca := newCA(t, clusterID)
	queen := identity(t, ca, signing{id: "00000001", roles: []core.Role{core.RoleQueen}})
	hive := identity(t, ca, signing{id: "00000002", roles: []core.Role{core.RoleHive}})
	old := identity(t, ca, signing{id: "00000003", roles: []core.Role{core.RoleHive}, now: time.Now().Add(-48 * time.Hour), ttl: time.Hour})
	twin := identity(t, newCA(t, clusterID), signing{id: "00000002", roles: []core.Role{core.RoleHive}})
	binding := []byte("this connection")
	vouch := func(i *pki.Identity) (certificate, signature []byte) {
		certificate, signature, err := i.Vouch(binding)
		must.NoError(t, err)
		return certificate, signature
	}
	for _, i := range []*pki.Identity{hive, old, queen} {
		certificate, signature := vouch(i)
		n, err := queen.CheckVouch(certificate, signature, binding)
		must.NoError(t, err)
		must.Eq(t, i.Node().ID, n.ID)
		must.Eq(t, i.Node().KeyHash, n.KeyHash)
	}
	// A signature without a binding would be valid over any connection.
	c, unbound, err := hive.Vouch(nil)
	must.NoError(t, err)
	_, err = queen.CheckVouch(c, unbound, nil)
	must.Eq(t, core.Unauthenticated, core.KindOf(err))
	certificate, signature := vouch(hive)
	_, others := vouch(old)
	foreign, foreignSignature := vouch(twin)
	for name, tt := range map[string]struct{ certificate, signature, binding []byte }{
		"another connection":   {certificate, signature, []byte("that connection")},
		"no connection":        {certificate, signature, nil},
		"another node's key":   {certificate, others, binding},
		"no signature":         {certificate, nil, binding},
		"another CA":           {foreign, foreignSignature, binding},
		"no certificate":       {nil, signature, binding},
		"not a certificate":    {[]byte("garbage"), signature, binding},
		"a large certificate":  {make([]byte, 1<<21), signature, binding},
		"a broken certificate": {certificate[:len(certificate)-1], signature, binding},
	} {
		_, err := queen.CheckVouch(tt.certificate, tt.signature, tt.binding)
		must.Eq(t, core.Unauthenticated, core.KindOf(err), must.Sprint(name))
	}
}
