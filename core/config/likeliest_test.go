package config

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// Addresses of container networks and link-local addresses come last, whatever the order of the
// input.
func TestLikeliestAddress(t *testing.T) {
	t.Parallel()
	of := func(name, ip string) interfaceAddress { return interfaceAddress{name, netip.MustParseAddr(ip)} }
	lo, docker, bridge, lan := of("lo", "127.0.0.1"), of("docker0", "172.17.0.1"), of("br-0a1b2c", "172.18.0.1"), of("eth0", "10.0.0.7")
	link, link6, lan6 := of("eth0", "169.254.3.4"), of("eth0", "fe80::1"), of("eth0", "2001:db8::7")
	for name, tt := range map[string]struct {
		list []interfaceAddress
		want string
	}{
		"containers first": {[]interfaceAddress{lo, docker, bridge, lan}, "10.0.0.7"},
		"link-local first": {[]interfaceAddress{link, link6, docker, lan6}, "2001:db8::7"},
		"containers alone": {[]interfaceAddress{lo, link, docker}, "172.17.0.1"},
		"link-local alone": {[]interfaceAddress{lo, link6, link}, "169.254.3.4"},
		"two networks":     {[]interfaceAddress{lan, lan6}, "10.0.0.7"},
		"none":             {[]interfaceAddress{lo, link6}, ""},
	} {
		ip, r := likeliest(tt.list)
		must.Eq(t, tt.want != "", r != reachNobody, must.Sprint(name))
		if tt.want != "" {
			must.Eq(t, tt.want, ip.String(), must.Sprint(name))
		}
	}
	all := []interfaceAddress{lo, docker, bridge, lan, link, link6, lan6}
	for host, want := range map[string]string{
		"10.0.0.7": "", "2001:db8::7": "", "127.0.0.1": "", "192.0.2.1": "", "box.lan": "",
		"172.17.0.1": "docker0", "172.18.0.1": "br-0a1b2c", "169.254.3.4": "link-local",
	} {
		if why := doubt(host, all); want == "" {
			must.Eq(t, "", why)
		} else {
			must.StrContains(t, why, want)
		}
	}
}

// An address that only this machine can reach is not advertised.
func TestSourceAddress(t *testing.T) {
	t.Parallel()
	for _, target := range []string{"127.0.0.1:9", "[::1]:9", "nothing"} {
		_, ok := sourceAddress(t.Context(), target)
		must.False(t, ok, must.Sprint(target))
	}
}

// An advertised address must belong to this machine, unless a router is configured to forward it,
// and a name must not be one that every machine resolves to itself.
func TestCheckAdvertised(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		bind    Bind
		problem string
	}{
		"none":                     {Bind{}, ""},
		"loopback, one machine":    {Bind{Advertise: "127.0.0.9"}, ""},
		"nobody's":                 {Bind{Advertise: "192.0.2.7"}, "192.0.2.7 is not an address of this machine"},
		"nobody's, version 6":      {Bind{Advertise: "2001:db8::7"}, "not an address of this machine"},
		"behind a router":          {Bind{Advertise: "192.0.2.7", AdvertiseNAT: true}, ""},
		"a name of every machine":  {Bind{Advertise: "localhost"}, "every machine takes for itself"},
		"a name that is not found": {Bind{Advertise: "no-such-host.invalid"}, ""},
	} {
		err := (&Config{Bind: tt.bind}).CheckAdvertised(t.Context())
		if tt.problem == "" {
			must.NoError(t, err, must.Sprint(name))
			continue
		}
		must.ErrorContains(t, err, tt.problem)
		must.Eq(t, core.Invalid, core.KindOf(err))
		must.NotEq(t, "", core.HintOf(err))
	}
	must.StrContains(t, core.HintOf((&Config{Bind: Bind{Advertise: "192.0.2.7"}}).CheckAdvertised(t.Context())), "advertise_nat")
}

// The start of an agent waits at most three seconds for a silent resolver, and leaves nothing
// behind after one that answers.
func TestCheckAdvertisedLooksUpInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &Config{Bind: Bind{Advertise: "queen.example"}}
		began := time.Now()
		must.NoError(t, c.checkAdvertised(t.Context(), func(ctx context.Context, _, _ string) ([]netip.Addr, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}))
		must.Eq(t, 3*time.Second, time.Since(began))

		var ended func() error
		must.ErrorContains(t, c.checkAdvertised(t.Context(), func(ctx context.Context, _, name string) ([]netip.Addr, error) {
			ended = ctx.Err
			must.Eq(t, "queen.example", name)
			return []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.7")}, nil
		}), "queen.example leads to 192.0.2.7, which is not an address of this machine")
		must.Error(t, ended())
	})
}

// Every listed address belongs to this machine: at least loopback, without which no test could
// listen.
func TestHas(t *testing.T) {
	t.Parallel()
	list := interfaceAddresses()
	must.SliceContainsFunc(t, list, true, func(a interfaceAddress, loopback bool) bool { return a.ip.IsLoopback() == loopback })
	for _, a := range list {
		must.True(t, Has(a.ip), must.Sprint(a))
	}
	must.False(t, Has(netip.MustParseAddr("192.0.2.7")))
}

func TestLoopback(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]bool{
		"localhost": true, "127.0.0.1": true, "127.9.9.9": true, "::1": true, "::ffff:127.0.0.1": true,
		"192.0.2.7": false, "0.0.0.0": false, "::": false, "a.example": false, "": false,
	} {
		must.Eq(t, want, Loopback(host), must.Sprint(host))
	}
}
