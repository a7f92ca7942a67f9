package gateway

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// An operation cannot name a route that is not there, nor one that needs more than read.
func TestEveryRouteOfAnOperationIsThere(t *testing.T) {
	t.Parallel()
	scopes := map[string]core.Scope{}
	for _, r := range routes() {
		if r.method == "GET" {
			scopes[r.pattern] = r.scope
		}
	}
	for _, s := range core.Operations() {
		if s.Get != "" {
			must.MapContainsKey(t, scopes, s.Get, must.Sprint(s.Name))
			must.Eq(t, core.ScopeRead, scopes[s.Get], must.Sprint(s.Name))
		}
	}
}
