package core_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func TestCapabilities(t *testing.T) {
	t.Parallel()
	c := core.CapabilitiesOf([]string{"tools", "chat", "Chat", "", "a b", "chat", strings.Repeat("x", 33)})
	must.Eq(t, []string{"chat", "tools"}, c.List())
	must.True(t, c.Has("tools"))
	must.False(t, c.Has("tool"))
	must.False(t, c.Has(""))
	must.Eq(t, "vision", c.Lacks([]string{"chat", "vision"}))
	must.Eq(t, "", c.Lacks([]string{"chat", "tools"}))
	must.Eq(t, "", core.Capabilities("").Lacks([]string{"tools"})) // no capabilities reported
	must.Nil(t, core.Capabilities("").List())
	must.Eq(t, "chat tools vision", c.With("chat vision"))
	must.Eq(t, "chat", core.Capabilities("").With("chat"))

	b, err := json.Marshal(core.Worker{Capabilities: c})
	must.NoError(t, err)
	must.StrContains(t, string(b), `"capabilities":["chat","tools"]`)
	var w core.Worker
	must.NoError(t, json.Unmarshal(b, &w))
	must.Eq(t, c, w.Capabilities)
	b, err = json.Marshal(core.Worker{})
	must.NoError(t, err)
	must.StrNotContains(t, string(b), "capabilities")
}

func TestCapabilitiesBounds(t *testing.T) {
	t.Parallel()
	var many []string
	for i := range 10_000 {
		many = append(many, fmt.Sprint("c", i))
	}
	must.Len(t, core.MaxCapabilities, core.CapabilitiesOf(many).List())
}
