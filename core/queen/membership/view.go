package membership

import (
	"github.com/rbee-project/rbee/core/registry"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// View returns the hives' view of the cluster; nil: there is no cluster.
func (m *Members) View(ws registry.WatchSet) *queenv1.ClusterView {
	registry := m.registry.View()
	c, ok := registry.Cluster(ws)
	if !ok || m.net == nil {
		return nil
	}
	queens, err := m.registry.Queens()
	if err != nil {
		return nil // it is shutting down
	}
	v := &queenv1.ClusterView{Index: registry.AppliedIndex()}
	for _, o := range queens {
		v.Queens = append(v.Queens, &queenv1.QueenAddress{Id: o.ID, RpcAddress: o.Address, GossipAddress: m.gossipOf(o.ID)})
	}
	if v.GossipKeys, err = m.gossipKeys(c); err != nil {
		m.log.Error("cannot open the gossip keys of the registry", "error", err)
	}
	for _, n := range registry.Nodes(ws) {
		if n.Revoked {
			v.Revoked = append(v.Revoked, n.ID)
		}
	}
	return v
}
