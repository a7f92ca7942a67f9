package config

import (
	"context"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

// ofContainers matches the prefixes of interface names that container engines and virtual machines
// use for networks within this machine.
var ofContainers = regexp.MustCompile(`^(docker|br-|veth|virbr|vnet|podman|cni|cbr|flannel|cali|cilium|weave|lxc|lxd|incusbr|kube|nerdctl|vmnet|vboxnet)`)

// interfaceAddress is an address of one interface.
type interfaceAddress struct {
	name string
	ip   netip.Addr
}

func interfaceAddresses() []interfaceAddress {
	var out []interfaceAddress
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		list, _ := i.Addrs()
		for _, a := range list {
			if p, err := netip.ParsePrefix(a.String()); err == nil && i.Flags&net.FlagUp != 0 {
				out = append(out, interfaceAddress{i.Name, p.Addr().Unmap()})
			}
		}
	}
	return out
}

// reach ranks how likely other machines reach this one at an address, best first.
type reach int

const (
	reachOutside reach = iota
	reachContainers
	reachLink
	reachNobody // loopback, multicast, or an IPv6 address that needs a zone
)

func (a interfaceAddress) reach() reach {
	switch {
	case a.ip.IsLinkLocalUnicast() && a.ip.Is4():
		return reachLink
	case !a.ip.IsGlobalUnicast():
		return reachNobody
	case ofContainers.MatchString(a.name):
		return reachContainers
	}
	return reachOutside
}

// likeliest returns the address at which other machines most likely reach this one: the first
// address in an outside network, else in a container network, else a link-local one.
func likeliest(list []interfaceAddress) (best netip.Addr, r reach) {
	r = reachNobody
	for _, a := range list {
		if now := a.reach(); now < r {
			best, r = a.ip, now
		}
	}
	return best, r
}

// OutsideAddress returns an address of this machine in an outside network, or false if it has none.
func OutsideAddress() (netip.Addr, bool) {
	best, r := likeliest(interfaceAddresses())
	return best, r == reachOutside
}

// Doubt returns why other machines may be unable to reach this one at host; empty: no reason is
// known.
func Doubt(host string) string { return doubt(host, interfaceAddresses()) }

func doubt(host string, list []interfaceAddress) string {
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return ""
	}
	for _, a := range list {
		if a.ip.WithZone("") != ip.Unmap().WithZone("") {
			continue
		}
		switch a.reach() {
		case reachContainers:
			return host + " belongs to " + a.name + ", a network of containers or virtual machines inside this machine"
		case reachLink:
			return host + " is a link-local address, which routers do not pass on and machines give themselves when they get none"
		}
	}
	return ""
}

// Has reports whether an address belongs to this machine, as opposed to a router that forwards its
// traffic.
func Has(ip netip.Addr) bool {
	if ip = ip.Unmap(); ip.IsLoopback() { // all of 127.0.0.0/8 belongs to it, but only part of it is listed
		return true
	}
	for _, a := range interfaceAddresses() {
		if a.ip.WithZone("") == ip.WithZone("") {
			return true
		}
	}
	return false
}

// lookupTimeout bounds the lookup of an advertised name.
const lookupTimeout = 3 * time.Second

// CheckAdvertised returns why other machines cannot reach this one at bind.advertise; nil: no
// problem is known. A name that cannot be looked up now is not a problem. Errors: Invalid.
func (c *Config) CheckAdvertised(ctx context.Context) error {
	return c.checkAdvertised(ctx, net.DefaultResolver.LookupNetIP)
}

func (c *Config) checkAdvertised(ctx context.Context, lookup func(ctx context.Context, network, name string) ([]netip.Addr, error)) error {
	v := c.Bind.Advertise
	if v == "" || c.Bind.AdvertiseNAT {
		return nil
	}
	ips, name := []netip.Addr{}, true
	if ip, err := netip.ParseAddr(v); err == nil {
		ips, name = append(ips, ip), false
	} else {
		ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
		if ips, err = lookup(ctx, "ip", v); err != nil || len(ips) == 0 {
			return nil // it may resolve later
		}
	}
	leads := v
	if name {
		leads = v + " leads to " + ips[0].Unmap().String() + ", which"
	}
	switch {
	case !slices.ContainsFunc(ips, Has):
		return core.Errorf(core.Invalid, "%s is not an address of this machine", leads).Hint(
			"Advertise one of its own%s. Where a router passes on what comes for that address (NAT), set bind { advertise_nat = true } (RBEE_BIND_ADVERTISE_NAT=true).", ownAddresses())
	case name && !slices.ContainsFunc(ips, func(ip netip.Addr) bool { return !ip.Unmap().IsLoopback() }):
		return core.Errorf(core.Invalid, "%s every machine takes for itself", leads).Hint(
			"Advertise an address that the others reach this machine at%s; 127.0.0.1 will do for a cluster on this machine alone.", ownAddresses())
	}
	return nil
}

// ownAddresses lists addresses at which others may reach this machine, for a hint.
func ownAddresses() string {
	var list []string
	for _, a := range interfaceAddresses() {
		if a.reach() == reachOutside && len(list) < 4 {
			list = append(list, a.ip.String())
		}
	}
	if len(list) == 0 {
		return ""
	}
	return ", such as " + strings.Join(list, " or ")
}

// Loopback reports whether host is an address that only its own machine can reach.
func Loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}
