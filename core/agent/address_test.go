package agent

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/hive"
)

// The advertised host depends on which source sets it: a documentation address, 192.0.2.7, stands
// for an address that this machine has lost.
func TestHostNow(t *testing.T) {
	t.Parallel()
	const lost = "192.0.2.7"
	queens := []hive.QueenAddress{{ID: "aaaaaaaa", RPCAddress: "no address"}, {ID: "bbbbbbbb", RPCAddress: "127.0.0.1:7834"}}
	for name, tt := range map[string]struct {
		bind   config.Bind
		before string
		found  bool
		want   string
	}{
		"the configuration advertises one":      {config.Bind{Advertise: "box.lan", Address: "127.0.0.5"}, lost, false, "box.lan"},
		"it was given when the machine joined":  {config.Bind{Address: "127.0.0.5"}, lost, false, lost},
		"the machine listens on another one":    {config.Bind{Address: "127.0.0.5"}, "127.0.0.4", true, "127.0.0.5"},
		"the machine still has it":              {config.Bind{Address: "0.0.0.0"}, "127.0.0.4", true, "127.0.0.4"},
		"the machine has lost it: queens know":  {config.Bind{Address: "0.0.0.0"}, lost, true, "127.0.0.1"},
		"a name was found out before, and lost": {config.Bind{Address: "0.0.0.0"}, "old-name", true, "127.0.0.1"},
	} {
		got, err := hostNow(t.Context(), &config.Config{Bind: tt.bind}, tt.before, tt.found, queens)
		must.NoError(t, err, must.Sprint(name))
		must.Eq(t, tt.want, got, must.Sprint(name))
	}
}
