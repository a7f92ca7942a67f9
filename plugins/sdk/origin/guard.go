package origin

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/rbee-project/rbee/plugins/sdk"
)

// guard decides which addresses may be dialled.
type guard struct {
	allow []netip.Prefix
}

// ParsePrefixes parses CIDR prefixes such as "10.0.0.0/8"; a bare address is a prefix of one
// address. Anything else is ErrInvalid.
func ParsePrefixes(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			a, aerr := netip.ParseAddr(text)
			if aerr != nil || a.Zone() != "" {
				return nil, sdk.WithHint(fmt.Errorf("invalid address prefix %q: %w", text, sdk.ErrInvalid), "Write it like 10.0.0.0/8 or fd00::/8.")
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// special4 lists the blocks of IPv4 that are not the public internet: IANA's registry of
// special-purpose addresses, multicast and class E.
func special4() []netip.Prefix {
	return prefixes(
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
		"192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24",
		"203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
	)
}

// special6 lists the blocks inside 2000::/3 that are not the public internet, including tunnels:
// the targets behind 6to4 and Teredo cannot be checked.
func special6() []netip.Prefix {
	return prefixes("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
}

func prefixes(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(texts))
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

// nat64 returns the prefix through which IPv6-only networks reach IPv4: the last four bytes are the
// IPv4 address (RFC 6052).
func nat64() netip.Prefix { return netip.MustParsePrefix("64:ff9b::/96") }

// public reports whether a is an address on the public internet.
func public(a netip.Addr) bool {
	a = a.Unmap()
	if a.Zone() != "" {
		return false
	}
	if a.Is4() {
		return !contains(special4(), a)
	}
	if nat64().Contains(a) {
		return public(embedded4(a))
	}
	// All other IPv6, such as loopback, unique local and link-local, is outside the one allocated
	// block.
	return netip.MustParsePrefix("2000::/3").Contains(a) && !contains(special6(), a)
}

func embedded4(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom4([4]byte(b[12:]))
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// check rejects an address that is neither public nor allowed. host is the name that resolved to
// it.
func (g *guard) check(host string, a netip.Addr) error {
	a = a.Unmap()
	if public(a) || contains(g.allow, a) || nat64().Contains(a) && contains(g.allow, embedded4(a)) {
		return nil
	}
	return refused(host, a)
}

func refused(host string, a netip.Addr) error {
	what := host + " is"
	if host != a.String() {
		what = host + " leads to"
	}
	plain := a.WithZone("")
	return sdk.WithHint(fmt.Errorf("%s %s, which is not a public address: %w", what, a, sdk.ErrForbidden),
		"An address in a reference or an answer could make this machine ask its neighbours. If this one is meant to be asked, add %q, or the network it is in, to hive.download.allow_addresses.",
		netip.PrefixFrom(plain, plain.BitLen()))
}

// checkURL rejects invalid origin addresses before any lookup. It checks literal addresses here,
// because with a proxy this machine would not see them later.
func (g *guard) checkURL(u *url.URL) error {
	if u.Scheme != "https" && u.Scheme != "http" {
		return fmt.Errorf("unsupported scheme %q, want https or http: %w", u.Scheme, sdk.ErrForbidden)
	}
	if u.User != nil {
		return sdk.WithHint(fmt.Errorf("the address of %s contains a user name or password: %w", u.Hostname(), sdk.ErrInvalid), "Remove it, and put credentials into the configuration of the catalog source.")
	}
	host := u.Hostname()
	if host == "" {
		return fmt.Errorf("address %q has no host: %w", Redact(u), sdk.ErrInvalid)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("invalid port %q: %w", port, sdk.ErrInvalid)
		}
	}
	return g.checkHost(host)
}

func (g *guard) checkHost(host string) error {
	for _, r := range host {
		// Non-ASCII digits and dots would later be converted to ASCII ones.
		if r > '~' || r <= ' ' || strings.ContainsRune(`%\/@`, r) {
			return sdk.WithHint(fmt.Errorf("invalid host name %q: %w", host, sdk.ErrInvalid), "Write an international name as it goes over the network: xn--….")
		}
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if a, err := netip.ParseAddr(name); err == nil {
		return g.check(host, a)
	}
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if g.check(host, loopback) != nil && g.check(host, netip.IPv6Loopback()) != nil {
			return refused(host, loopback)
		}
		return nil
	}
	if endsInNumber(name) {
		return sdk.WithHint(fmt.Errorf("%q is neither a host name nor an address in its usual form: %w", host, sdk.ErrForbidden), "Write the address as four decimal numbers with dots between them.")
	}
	return nil
}

// endsInNumber reports whether some programs would read a host as an IPv4 address: 2130706433,
// 0x7f.1, 0177.0.0.1, 127.1. It is the test of the WHATWG URL standard.
func endsInNumber(host string) bool {
	last := host[strings.LastIndexByte(host, '.')+1:]
	if strings.Trim(last, "0123456789") == "" { // also true for an empty last part
		return true
	}
	rest, hex := strings.CutPrefix(last, "0x")
	return hex && strings.Trim(rest, "0123456789abcdef") == ""
}
