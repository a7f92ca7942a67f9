package config_test

import (
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
)

// Whether an open address is safe is known only when the agent starts.
func TestOpenWithoutTLS(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		env       config.Env
		inCluster bool
		want      string // text in the error; empty: none
	}{
		"loopback":            {environment(), false, ""},
		"loopback in cluster": {environment(), true, ""},
		"alone":               {environment("RBEE_BIND_ADDRESS=0.0.0.0"), false, "RBEE_BIND_ADDRESS"},
		"what to do":          {environment("RBEE_BIND_ADDRESS=0.0.0.0"), false, "rbee cluster init"},
		"IPv6":                {environment("RBEE_BIND_ADDRESS=::"), false, "insecure = true"},
		"mapped IPv4":         {environment("RBEE_BIND_ADDRESS=::ffff:192.0.2.1"), false, "insecure = true"},
		"in a cluster":        {environment("RBEE_BIND_ADDRESS=0.0.0.0"), true, ""},
		"insecure":            {environment("RBEE_BIND_ADDRESS=0.0.0.0", "RBEE_INSECURE=true"), false, ""},
		"own files":           {environment("RBEE_BIND_ADDRESS=0.0.0.0", "RBEE_TLS_CA_FILE=a", "RBEE_TLS_CERT_FILE=b", "RBEE_TLS_KEY_FILE=c"), false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, diags := config.Load(nil, tc.env)
			must.NoError(t, diags.Err())
			err := c.Diagnostics(c.OpenWithoutTLS(tc.inCluster)).Err()
			if tc.want == "" {
				must.NoError(t, err)
				return
			}
			must.Eq(t, core.Invalid, core.KindOf(err))
			must.StrContains(t, err.Error(), tc.want)
		})
	}
	// An agent that keeps nothing is in no cluster, so the check need not wait for its start.
	c, diags := config.Dev("/tmp/x", environment("RBEE_BIND_ADDRESS=0.0.0.0"))
	must.Nil(t, c)
	must.StrContains(t, diags.Err().Error(), "insecure = true")
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		env                       config.Env
		alone, cluster, advertise string
	}{
		"told none":      {environment(), "127.0.0.1", "0.0.0.0", "?"},
		"told loopback":  {environment("RBEE_BIND_ADDRESS=127.0.0.1"), "127.0.0.1", "127.0.0.1", "127.0.0.1"},
		"told localhost": {environment("RBEE_BIND_ADDRESS=localhost"), "localhost", "localhost", "127.0.0.1"},
		"told one":       {environment("RBEE_BIND_ADDRESS=10.1.2.3"), "10.1.2.3", "10.1.2.3", "10.1.2.3"},
		"told a name":    {environment("RBEE_BIND_ADVERTISE=a.example.org"), "127.0.0.1", "0.0.0.0", "a.example.org"},
		"told both":      {environment("RBEE_BIND_ADDRESS=0.0.0.0", "RBEE_BIND_ADVERTISE=10.0.0.9"), "0.0.0.0", "0.0.0.0", "10.0.0.9"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, diags := config.Load(nil, tc.env)
			must.NoError(t, diags.Err())
			must.Eq(t, tc.alone, c.ListenAddress(false))
			must.Eq(t, tc.cluster, c.ListenAddress(true))
			got, err := c.AdvertiseHost(t.Context())
			if tc.advertise != "?" {
				must.NoError(t, err)
				must.Eq(t, tc.advertise, got)
			} else if err == nil { // depends on the machine
				must.NotEq(t, "", got)
				must.NotEq(t, "0.0.0.0", got)
			}
		})
	}
}

func TestInsecureWarnsAtEveryLoad(t *testing.T) {
	t.Parallel()
	c, diags := config.Load(nil, environment("RBEE_BIND_ADDRESS=0.0.0.0", "RBEE_INSECURE=true"))
	must.NotNil(t, c)
	must.Len(t, 1, diags.List)
	must.Eq(t, hcl.DiagWarning, diags.List[0].Severity)
}
