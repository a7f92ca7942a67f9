package queen

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/queen/hives"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

const (
	sightTimeout = 2 * time.Second
	reachTimeout = 2 * time.Second
)

// hiveHealth returns a hive as this queen and the others see it. Errors: NotFound, Conflict.
func (q *Queen) hiveHealth(ctx context.Context, r core.Request) (core.HiveHealth, error) {
	h, err := q.hives.Named(ctx, r.Hive)
	if err != nil {
		return core.HiveHealth{}, err
	}
	health := core.HiveHealth{Hive: h, Queens: []core.HiveSight{q.sight(h.ID)}}
	var wg sync.WaitGroup
	wg.Go(func() {
		health.Reachable, health.Problem = q.reaches(ctx, h)
	})
	var mu sync.Mutex // guards health.Queens
	if !q.Registry.Alone() {
		for _, n := range q.Registry.View().Nodes(nil) {
			if n.ID == q.opts.ID || n.Revoked || !n.Has(core.RoleQueen) {
				continue
			}
			wg.Go(func() {
				s := q.sightFrom(ctx, n, h.ID)
				mu.Lock()
				defer mu.Unlock()
				health.Queens = append(health.Queens, s)
			})
		}
	}
	wg.Wait()
	slices.SortFunc(health.Queens, func(a, b core.HiveSight) int { return strings.Compare(a.Queen, b.Queen) })
	return health, nil
}

func (q *Queen) sightFrom(ctx context.Context, n core.Node, hive string) core.HiveSight {
	ctx, cancel := context.WithTimeout(ctx, sightTimeout)
	defer cancel()
	conn, err := q.opts.Network.Conn(n.ID, n.RPCAddress, core.RoleQueen)
	if err != nil {
		return core.HiveSight{Queen: n.ID, Problem: err.Error()}
	}
	resp, err := queenv1.NewClusterServiceClient(conn).Sight(ctx, &queenv1.SightRequest{Hive: hive})
	if err != nil {
		return core.HiveSight{Queen: n.ID, Problem: fmt.Sprintf("queen %s does not answer: %v", n.Name, rpc.FromStatus(err))}
	}
	for _, s := range resp.GetHives() {
		return sightFromProto(n.ID, s)
	}
	return core.HiveSight{Queen: n.ID, Problem: fmt.Sprintf("queen %s does not know the hive", n.Name)}
}

func sightToProto(hive string, s core.HiveSight) *queenv1.HiveSight {
	p := &queenv1.HiveSight{Hive: hive, Linked: s.Linked, Gossip: s.Gossip, Problem: s.Problem}
	if s.Heard {
		p.Silence = durationpb.New(max(time.Duration(s.Silence), 0))
	}
	return p
}

func sightFromProto(queen string, p *queenv1.HiveSight) core.HiveSight {
	return core.HiveSight{
		Queen: queen, Linked: p.GetLinked(), Heard: p.GetSilence() != nil, Silence: core.Duration(p.GetSilence().AsDuration()), Gossip: p.GetGossip(), Problem: p.GetProblem(),
	}
}

// reaches reports whether the hive answers a call now.
func (q *Queen) reaches(ctx context.Context, h core.Hive) (bool, string) {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	c, err := q.hives.Conn(h.ID)
	if err == nil {
		_, err = hives.Answers(ctx, c, operation.WorkerProcessList.Spec, core.Request{})
		err = rpc.FromStatus(err)
	}
	if err == nil {
		return true, ""
	}
	if h.RPCAddress != "" {
		var d net.Dialer
		conn, dialErr := d.DialContext(ctx, "tcp", h.RPCAddress)
		if dialErr != nil {
			return false, fmt.Sprintf("its RPC port %s cannot be reached: %v", h.RPCAddress, dialErr)
		}
		conn.Close()
	}
	return false, err.Error()
}

// sight returns how this queen sees a hive, gossip included.
func (q *Queen) sight(hive string) core.HiveSight {
	s := core.HiveSight{Queen: q.opts.ID}
	seen := q.liveness.Hive(hive)
	s.Linked = seen.Linked
	if !seen.Heard.IsZero() {
		s.Heard, s.Silence = true, core.Duration(max(time.Since(seen.Heard), 0))
	}
	s.Gossip = q.Members.Gossiped(hive)
	return s
}
