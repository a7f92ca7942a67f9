package agent

import (
	"context"
	"net"
	"net/netip"
	"strconv"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/hive"
	"github.com/rbee-project/rbee/core/pki"
)

// hostTowards returns the address at which the machines of the cluster reach this one: the
// configured address, else the local address of a connection to the queen.
func hostTowards(ctx context.Context, cfg *config.Config, queen string) (string, error) {
	if cfg.Bind.Advertise != "" || cfg.Bind.Address != "" && !unspecified(cfg.ListenAddress(true)) {
		return cfg.AdvertiseHost(ctx)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", queen) // sends nothing
	if err != nil {
		return "", core.WithHint(core.Wrap(err, core.Unavailable, "find the address of this machine"), "Check the address of the queen, or set bind { advertise = … }.")
	}
	defer conn.Close()
	a, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return cfg.AdvertiseHost(ctx)
	}
	return a.AddrPort().Addr().Unmap().String(), nil
}

func unspecified(address string) bool {
	ip := net.ParseIP(address)
	return ip != nil && ip.IsUnspecified()
}

// followAddress updates the address in the identity at which others reach this machine, when the
// agent starts, and returns its host: a router may have assigned another address since, or the
// configuration may have changed. The others learn it through gossip, from the hive's reports and
// with the renewal of the certificate. Errors: those of the configuration's address, Integrity,
// Internal.
func followAddress(ctx context.Context, cfg *config.Config, id *pki.Identity, queens []hive.QueenAddress, log hclog.Logger) (host string, err error) {
	before := id.RPCAddress()
	if host, _, err = net.SplitHostPort(before); err != nil {
		return "", core.Wrap(err, core.Integrity, "read the address of this node")
	}
	if host, err = hostNow(ctx, cfg, host, id.AddressFound(), queens); err != nil {
		return "", err
	}
	if why := config.Doubt(host); why != "" {
		log.Warn("other machines may not reach this one at its address: set bind { advertise = … } where they do not", "address", host, "problem", why)
	}
	now := net.JoinHostPort(host, strconv.Itoa(cfg.Bind.RPCPort))
	if now == before {
		return host, nil
	}
	log.Info("the address of this machine changed", "address", now, "before", before)
	return host, id.SetRPCAddress(now)
}

// hostNow returns the host at which others reach this machine, the first of: what the configuration
// advertises; what was given when the machine joined; the listen address; the previous host, if
// this machine still has it; the address at which the queens see it.
func hostNow(ctx context.Context, cfg *config.Config, before string, found bool, queens []hive.QueenAddress) (string, error) {
	listens := cfg.ListenAddress(true)
	switch {
	case cfg.Bind.Advertise != "" || found && !unspecified(listens):
		return cfg.AdvertiseHost(ctx)
	case !found || ofThisMachine(before):
		return before, nil
	}
	for _, q := range queens {
		if host, err := hostTowards(ctx, cfg, q.RPCAddress); err == nil && ofThisMachine(host) {
			return host, nil
		}
	}
	if host, err := cfg.AdvertiseHost(ctx); err == nil {
		return host, nil
	}
	return before, nil // the network is not up yet; the previous address may become right again
}

// ofThisMachine reports whether this machine has the address host and others may reach it there.
func ofThisMachine(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && config.Has(ip)
}
