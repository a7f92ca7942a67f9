package node

import (
	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
)

// Register registers the metrics of this node, which are read on demand. Errors: the registerer's.
func (n *Node) Register(to prometheus.Registerer) error {
	for _, g := range []struct {
		name, help string
		value      func() float64
	}{
		{"leader", "1 on the queen that leads.", func() float64 { return truth(n.raft.State() == raft.Leader) }},
		{"voters", "Queens that vote.", func() float64 { return float64(len(n.voterIDs())) }},
		{"term", "Term of the last election.", func() float64 { return float64(n.raft.CurrentTerm()) }},
		{"last_index", "Newest entry of the log.", func() float64 { return float64(n.raft.LastIndex()) }},
		{"commit_index", "Newest entry that a majority has.", func() float64 { return float64(n.raft.CommitIndex()) }},
		{"applied_index", "Newest command in the registry of this queen.", func() float64 { return float64(n.AppliedIndex()) }},
		{"leader_contact_seconds", "Time since this queen heard of a leader, or began; 0 on the leader.", func() float64 { return n.LastContact().Seconds() }},
	} {
		if err := to.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "rbee_raft", Name: g.name, Help: g.help}, g.value)); err != nil {
			return err
		}
	}
	return nil
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
