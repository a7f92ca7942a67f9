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

// hostTowards is the address at which the machines of the cluster reach this one: what the
// configuration says, else the address that it speaks to the queen from.
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

// followAddress has the identity say where others reach this machine now, when the agent starts,
// and returns the host of it: a router may have given it another address since, or somebody changed
// the configuration. The others learn it by gossip, from the hive's reports and with the renewal of
// the certificate. Errors: those of the configuration's address, Integrity, Internal.
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
	log.Info("this machine has another address", "address", now, "before", before)
	return host, id.SetRPCAddress(now)
}

// hostNow is the host that others reach this machine at: what the configuration advertises; what
// was given when the machine joined; what it listens on; what it was, as long as it is one of this
// machine's; else what the queens see it at.
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
	return before, nil // the network is not there yet; what was right may be right again
}

// ofThisMachine says whether host is an address that this machine has, and others may reach it at.
func ofThisMachine(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && config.Has(ip)
}
