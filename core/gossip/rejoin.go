package gossip

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/rbee-project/rbee/core"
)

const (
	rejoinInterval = 30 * time.Second // when there are other nodes
	rejoinFirst    = time.Second      // pause while alone; doubles up to rejoinInterval
	rejoinMoved    = 2 * time.Second  // pause while others may hold an old address of this node
	movedFor       = 30 * time.Second // how long rejoinMoved lasts after the last old address
	rejoinAtOnce   = 8                // nodes asked concurrently
	rejoinRound    = 64               // nodes asked per round
	resolveTimeout = 5 * time.Second
	maxExtra       = 64
)

// rejoinLoop looks for nodes that should be in the pool and are missing. memberlist itself forgets
// a dead node after half a minute and never asks for it again, so the halves of a network that was
// cut for longer would never find each other.
func (p *Pool) rejoinLoop(ctx context.Context, list *memberlist.Memberlist, kick <-chan struct{}) {
	alone := rejoinFirst
	for {
		p.rejoinOnce(ctx, list)
		wait := rejoinInterval
		p.mu.Lock()
		moved, settled := time.Now().Before(p.moved), p.settled
		p.mu.Unlock()
		switch {
		case moved:
			wait = rejoinMoved
		case !settled, p.size() == 1:
			wait = alone
			alone = min(2*alone, rejoinInterval)
		default:
			alone = rejoinFirst
		}
		timer := time.NewTimer(wait*9/10 + rand.N(wait/5)) // jitter, for after a power failure
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-kick:
			alone = rejoinFirst
		case <-timer.C:
		}
		timer.Stop()
	}
}

// rejoinOnce asks every node that should be in the pool and is missing.
func (p *Pool) rejoinOnce(ctx context.Context, list *memberlist.Memberlist) {
	p.mu.Lock()
	named := slices.Concat(p.opts.RetryJoin, p.extra)
	here := map[string]bool{p.self.GossipAddress: true}
	var someone string
	var before []string // members of the previous list
	for _, e := range p.members {
		switch {
		case e.Status != Alive:
		case p.settled:
			here[e.GossipAddress] = true
			someone = e.GossipAddress
		default:
			before = append(before, e.GossipAddress)
		}
	}
	moved, leaving := time.Now().Before(p.moved), p.leaving
	p.mu.Unlock()
	if leaving {
		return
	}
	var ask []string
	add := func(address string) {
		if !here[address] && len(ask) < rejoinRound {
			here[address] = true
			ask = append(ask, address)
		}
	}
	for _, address := range before {
		add(address)
	}
	for _, a := range named {
		for _, address := range p.resolve(ctx, a) {
			add(address)
		}
	}
	for _, address := range p.peers.addresses() {
		add(address)
	}
	if moved && someone != "" {
		ask = append(ask, someone) // a full exchange announces the new address
	}
	slots := make(chan struct{}, rejoinAtOnce)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, address := range ask {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			p.rejoins.Add(1)
			if _, err := list.Join([]string{address}); err != nil {
				p.log.Debug("could not reach a node that should be in the pool", "address", address, "error", err)
			}
		})
	}
}

// resolve returns all addresses (IP:port) of a host or host:port.
func (p *Pool) resolve(ctx context.Context, a string) []string {
	host, port, err := splitAddress(a)
	if err != nil {
		return nil
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return []string{net.JoinHostPort(ip.Unmap().String(), port)}
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		p.log.Debug("could not look up a node that should be in the pool", "host", host, "error", err)
		return nil
	}
	out := make([]string, 0, len(ips))
	for _, ip := range ips {
		out = append(out, net.JoinHostPort(ip.Unmap().String(), port))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// splitAddress splits host, host:port, v6 or [v6]:port.
func splitAddress(a string) (host, port string, err error) {
	host, port, err = net.SplitHostPort(a)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(a, "["), "]"), strconv.Itoa(DefaultPort)
		if _, ipErr := netip.ParseAddr(host); strings.Contains(host, ":") && ipErr != nil {
			host = ""
		}
	}
	if n, perr := strconv.ParseUint(port, 10, 16); perr != nil || n == 0 || host == "" || strings.ContainsAny(host, " /@[]\t\r\n") {
		return "", "", core.Errorf(core.Invalid, "invalid pool address %q", a).Hint(
			"Say host or host:port, where the port is that of gossip (%d when nothing else is set).", DefaultPort)
	}
	return host, port, nil
}
