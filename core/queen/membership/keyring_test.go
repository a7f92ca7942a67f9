package membership

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/memregistry"
	"github.com/rbee-project/rbee/raft/fsm"
)

// Keys are due for replacement while a revoked node may know them, unless they come from files.
func TestKeyringDue(t *testing.T) {
	t.Parallel()
	r := memregistry.New()
	write := func(n core.Node) {
		_, err := r.Apply(t.Context(), "", fsm.PutNode(n, ""))
		must.NoError(t, err)
	}
	c := core.Cluster{ModifyIndex: 1, SealedGossipKeys: []byte("sealed")}
	must.False(t, keyringDue(c, r.View(), nil))
	write(core.Node{ID: "aaaaaaaa", Name: "alpha", Roles: []core.Role{core.RoleHive}, RPCAddress: "10.0.0.1:7834", KeyHash: make([]byte, 32)})
	write(core.Node{ID: "bbbbbbbb", Name: "beta", Roles: []core.Role{core.RoleHive}, RPCAddress: "10.0.0.2:7834", KeyHash: make([]byte, 32)})
	must.False(t, keyringDue(c, r.View(), nil))
	_, err := r.Apply(t.Context(), "", fsm.RevokeNode("bbbbbbbb"))
	must.NoError(t, err)
	must.True(t, keyringDue(c, r.View(), nil))
	c.SealedGossipKeys = nil // they come from files
	must.False(t, keyringDue(c, r.View(), nil))
}
