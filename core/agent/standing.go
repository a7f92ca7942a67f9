package agent

import (
	"context"
	"slices"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

const (
	// standingEvery is the interval between queries of this node's standing while other nodes
	// refuse it; outcastEvery is the interval for a node that the cluster removed.
	standingEvery   = 10 * time.Second
	outcastEvery    = 5 * time.Minute
	standingTimeout = 10 * time.Second
)

const rejoinHint = "To come back, have this machine forget the cluster, and join it with a new token: stop its agent, \"rbee cluster leave --forget\", then \"rbee cluster join TOKEN@host\", " +
	"where the token is from \"rbee token create --type join\" on a queen. Its models stay."

// declined records that the node at an address refuses this one's certificate. It never blocks.
func (n *network) declined(address string) {
	select {
	case n.refusals <- address:
	default: // one is enough
	}
}

// watchStanding asks the queens for this node's standing when others refuse its certificate, until
// ctx ends. TLS gives no reason; a queen tells the holder of the key. A node that was removed from
// the cluster logs that once and stops dialling the others.
func (n *network) watchStanding(ctx context.Context) error {
	for {
		var refusedBy string
		select {
		case <-ctx.Done():
			return ctx.Err()
		case refusedBy = <-n.refusals:
		}
		for refusedBy != "" || n.Standing().Problem != "" {
			n.judge(n.askStanding(ctx, refusedBy))
			refusedBy = ""
			wait := standingEvery
			if n.Standing().Problem != "" {
				wait = outcastEvery
			}
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			case <-timer.C:
			}
		}
	}
}

// askStanding asks the queens in turn, starting with the one that refused this node; it returns
// unspecified if none answered.
func (n *network) askStanding(ctx context.Context, first string) queenv1.Standing {
	addresses := []string{first}
	for _, q := range n.queens.List() {
		if q.ID != n.identity.Node().ID && !slices.Contains(addresses, q.RPCAddress) {
			addresses = append(addresses, q.RPCAddress)
		}
	}
	for _, address := range addresses {
		if address == "" {
			continue
		}
		s, err := askStandingAt(ctx, n.identity, address)
		if err == nil && s != queenv1.Standing_STANDING_UNSPECIFIED {
			return s
		}
		n.log.Debug("no standing of this node from a queen", "address", address, "error", err)
		if ctx.Err() != nil {
			break
		}
	}
	return queenv1.Standing_STANDING_UNSPECIFIED
}

func askStandingAt(ctx context.Context, id *pki.Identity, address string) (queenv1.Standing, error) {
	ctx, cancel := context.WithTimeout(ctx, standingTimeout)
	defer cancel()
	fingerprint, err := pki.Fingerprint(id.CAPEM())
	if err != nil {
		return 0, err
	}
	conn, binding, err := rpc.BoundConn(ctx, address, fingerprint)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	certificate, signature, err := id.Vouch(binding)
	if err != nil {
		return 0, err
	}
	resp, err := queenv1.NewJoinServiceClient(conn).Standing(ctx, &queenv1.StandingRequest{Certificate: certificate, Signature: signature})
	return resp.GetStanding(), rpc.FromStatus(err)
}

// judge acts on the standing that a queen reported for this node.
func (n *network) judge(s queenv1.Standing) {
	problem := ""
	switch s {
	case queenv1.Standing_STANDING_REVOKED:
		problem = "was revoked, or taken out with \"rbee cluster leave\": the cluster refuses its certificate for ever"
	case queenv1.Standing_STANDING_UNKNOWN:
		problem = "is not in the cluster's registry: it was removed from there"
	case queenv1.Standing_STANDING_MEMBER:
	default:
		return // no queen answered
	}
	self := n.identity.Node()
	n.mu.Lock()
	before := n.standing.Problem
	switch {
	case problem == "":
		n.standing = core.Standing{Cluster: n.identity.Cluster()}
	case before == "":
		n.standing = core.Standing{Cluster: n.identity.Cluster(), Problem: "this machine, " + self.Name + ", " + problem, Hint: rejoinHint, Since: time.Now().UTC().Truncate(time.Second)}
	}
	now := n.standing
	n.mu.Unlock()
	switch {
	case now.Problem != "" && before == "":
		n.log.Error(now.Problem, "cluster", n.identity.Cluster(), "node", self.ID, "hint", now.Hint)
	case now.Problem == "" && before != "":
		n.log.Info("this machine is part of the cluster again")
	}
}

// Standing returns the standing that the queens last reported for this node.
func (n *network) Standing() core.Standing {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.standing
}

// barred returns the reason not to dial other nodes: the cluster removed this node; nil: it did
// not.
func (n *network) barred() error {
	if s := n.Standing(); s.Problem != "" { // already logged
		return core.Errorf(core.Forbidden, "this machine was removed from the cluster").Hint("%s", s.Hint)
	}
	return nil
}
