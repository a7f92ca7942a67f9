package agent

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/core/hive"
)

const (
	// addressEvery is the interval between checks of the machine's addresses, each of which takes
	// some microseconds.
	addressEvery = 2 * time.Second
	// nameEvery is the interval between look-ups of an advertised name; nameTimeout bounds each.
	nameEvery   = 15 * time.Second
	nameTimeout = 2 * time.Second
)

// followMoves updates this node's address while it runs, until ctx ends: a router may assign
// another address, or the machine may switch from cable to Wi-Fi. A configured address is followed
// only when it is a name that resolves to another address.
func (p *process) followMoves(ctx context.Context) error {
	tick := time.NewTicker(addressEvery)
	defer tick.Stop()
	var looked time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		host, _, err := net.SplitHostPort(p.net.identity.RPCAddress())
		if err != nil {
			continue
		}
		if _, err := netip.ParseAddr(host); err != nil {
			if time.Since(looked) >= nameEvery {
				looked = time.Now()
				p.net.followName(ctx, host)
			}
			continue
		}
		if now := hostWhileRunning(ctx, p.cfg, host, p.addressFound(), p.net.queens.List(), p.id); now != host {
			p.moveTo(now)
		}
	}
}

// addressFound reports whether this node's address was detected and may be detected again.
func (p *process) addressFound() bool {
	if p.cfg.TLS.Given() { // detected at each start
		return p.cfg.Bind.Advertise == ""
	}
	return p.net.identity.AddressFound()
}

// hostWhileRunning returns the host at which others reach this machine, given the previous one. The
// host changes only when the machine no longer has the previous address and has another one in an
// outside network: the addresses that remain without a network lead nowhere.
func hostWhileRunning(ctx context.Context, cfg *config.Config, before string, found bool, queens []hive.QueenAddress, self string) string {
	if cfg.Bind.Advertise != "" || !found || !unspecified(cfg.ListenAddress(true)) || ofThisMachine(before) && config.Doubt(before) == "" {
		return before
	}
	for _, q := range queens {
		if q.ID == self {
			continue
		}
		if host, err := hostTowards(ctx, cfg, q.RPCAddress); err == nil && outside(host) {
			return host
		}
	}
	if ip, ok := config.OutsideAddress(); ok {
		return ip.String()
	}
	return before
}

// outside reports whether host is an address of this machine in an outside network.
func outside(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && !ip.IsLoopback() && config.Has(ip) && config.Doubt(host) == ""
}

// moveTo announces this node at another host. The others learn it through gossip, from the hive's
// reports, from the queen's announcements, and with the renewal of the certificate, which clients
// need. Connections from and to the old address are dead, so moveTo cuts them to be redialled.
func (p *process) moveTo(host string) {
	n := p.net
	before, address := n.identity.RPCAddress(), net.JoinHostPort(host, strconv.Itoa(p.cfg.Bind.RPCPort))
	if err := n.identity.SetRPCAddress(address); err != nil {
		n.log.Error("cannot keep this machine's new address; the next start looks for it again", "address", address, "error", err)
		return
	}
	n.log.Info("the address of this machine changed", "address", address, "before", before)
	n.queens.setSelf(address)
	err := n.gossip.Update(func(m *gossip.Member) {
		m.RPCAddress = address
		if m.HTTPAddress != "" {
			m.HTTPAddress = net.JoinHostPort(host, strconv.Itoa(p.cfg.Bind.HTTPPort))
		}
	})
	if err != nil {
		n.log.Error("cannot announce this machine's new address over gossip", "error", err)
	}
	n.gossip.Move(host)
	n.redial()
	if p.bees != nil {
		p.bees.Moved()
	}
	select {
	case n.moves <- struct{}{}:
	default: // it will be renewed for the newest address
	}
}

// redial cuts all connections to and from other nodes.
func (n *network) redial() {
	n.pool.Reset()
	n.probes.Reset()
	n.stream.Reset()
	n.mux.Reset()
}

// followName keeps gossip at the current address of the name that this node advertises: gossip
// carries addresses, not names.
func (n *network) followName(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(ctx, nameTimeout)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	now, nowErr := netip.ParseAddrPort(n.gossip.Self().GossipAddress)
	if err != nil || len(ips) == 0 || nowErr != nil {
		return // no better address is known
	}
	if !slices.ContainsFunc(ips, func(ip netip.Addr) bool { return ip.Unmap() == now.Addr().Unmap() }) {
		n.log.Info("the advertised name resolves to another address", "name", name, "address", ips[0].Unmap())
		n.gossip.Move(ips[0].Unmap().String())
		n.redial()
	}
}
