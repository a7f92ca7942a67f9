package membership

import (
	"fmt"
	"slices"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/state"
)

// fileCertificateWarning is how long before its expiry a certificate that the cluster cannot renew
// is a problem.
const fileCertificateWarning = 14 * 24 * time.Hour

// Certificates returns when the first of the nodes' certificates expires, and the problems of any.
// Nodes renew theirs with a third of its life left, so one with a quarter left has failed to.
func (m *Members) Certificates(s *state.Snapshot) (first time.Time, problems []string) {
	c, ok := s.Cluster(nil)
	if !ok {
		return first, nil
	}
	warning, why := m.net.CertificateTTL/4, "its agent has not renewed it: look at its log"
	if len(c.SealedCAKey) == 0 {
		warning, why = fileCertificateWarning, "make it a new one: `rbee tls cert create --renew`"
	}
	for _, n := range s.Nodes(nil) {
		end := n.CertificateExpiresAt
		if n.Revoked || end.IsZero() {
			continue
		}
		if first.IsZero() || end.Before(first) {
			first = end
		}
		switch left := end.Sub(m.opts.Now().Round(0)); {
		case left <= 0:
			problems = append(problems, fmt.Sprintf("the certificate of %s has ended; join again with a new token", n.Name))
		case left <= warning:
			problems = append(problems, fmt.Sprintf("the certificate of %s ends on %s; %s", n.Name, end.UTC().Format(time.DateOnly), why))
		}
	}
	return first, problems
}

// Problems returns what is wrong with the queens and hives that should exist.
func (m *Members) Problems(s *state.Snapshot, queens []core.Queen) []string {
	var problems []string
	voters := 0
	for _, o := range queens {
		if o.Voter {
			voters++
		}
		if o.ID != m.opts.ID && !m.answers(o.ID) && m.net.Probe != nil {
			problems = append(problems, fmt.Sprintf("queen %s (%s) does not answer", o.Name, o.Address))
		}
	}
	if voters == 2 {
		problems = append(problems, "two queens vote: the cluster stops when either is gone; have a third one join")
	}
	c, ok := s.Cluster(nil)
	leaves := m.leaves()
	keyInFiles := ok && len(c.SealedGossipKeys) == 0 // these keys are not replaced automatically
	for _, n := range s.Nodes(nil) {
		if n.Revoked && keyInFiles {
			problems = append(problems, fmt.Sprintf("%s was revoked and knows the gossip key, which comes from files here; "+
				"unless that was done since, replace gossip.key_file on all nodes", n.Name))
			keyInFiles = false // report it once
		}
		if n.Revoked || leaves[n.ID] {
			continue
		}
		inRaft := slices.ContainsFunc(queens, func(o core.Queen) bool { return o.ID == n.ID })
		_, hive := s.Hive(nil, n.ID)
		switch {
		case n.Has(core.RoleQueen) && !inRaft:
			problems = append(problems, fmt.Sprintf("queen %s is not part of raft; start its agent, or revoke it: `rbee tls revoke %s`", n.Name, n.ID))
		case !n.Has(core.RoleQueen) && !hive:
			problems = append(problems, fmt.Sprintf("hive %s has not reported; start its agent, or revoke it: `rbee tls revoke %s`", n.Name, n.ID))
		}
	}
	if m.net != nil {
		problems = append(problems, m.udpProblems(s)...)
	}
	for _, h := range s.Hives(nil) {
		if h.Status == core.HiveReady && len(h.WorkerTypes) == 0 {
			problems = append(problems, fmt.Sprintf("hive %s has no worker types: no plugins are in its plugin_dir", h.Name))
		}
	}
	return problems
}
