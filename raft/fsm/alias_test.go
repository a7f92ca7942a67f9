package fsm_test

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// An alias is set, moved to another model, and removed; repeated commands change nothing, and a
// snapshot keeps it.
func TestAlias(t *testing.T) {
	t.Parallel()
	f := fsm.New()
	index := uint64(0)
	do := func(c *raftv1.Command) error {
		index++
		must.NoError(t, fsm.Validate(c))
		must.EqOp(t, 3, fsm.Required(c))
		return apply(t, f, index, c).Err
	}
	alias := func(name string) core.Alias {
		a, _ := f.State().Snapshot().Alias(nil, name)
		return a
	}
	set := func(name, model string) error {
		return do(fsm.PutAlias(core.Alias{Name: name, Model: model, CreateIndex: 7, ModifyIndex: 7}))
	}
	must.NoError(t, set("gpt", "a"))
	must.Eq(t, core.Alias{Name: "gpt", Model: "a", CreateIndex: 1, ModifyIndex: 1}, alias("gpt"))
	must.NoError(t, set("gpt", "a"))
	must.EqOp(t, 1, alias("gpt").ModifyIndex)
	must.NoError(t, set("gpt", "b"))
	must.Eq(t, core.Alias{Name: "gpt", Model: "b", CreateIndex: 1, ModifyIndex: 3}, alias("gpt"))
	must.NoError(t, set("other", "b"))
	must.NoError(t, f.Restore(io.NopCloser(bytes.NewReader(snapshot(t, f)))))
	must.Len(t, 2, f.State().Snapshot().Aliases(nil))
	must.EqOp(t, 3, alias("gpt").ModifyIndex)
	must.NoError(t, do(fsm.DeleteAlias("gpt")))
	must.NoError(t, do(fsm.DeleteAlias("gpt")))
	must.Eq(t, core.Alias{}, alias("gpt"))

	for i := range fsm.MaxAliases - 1 {
		must.NoError(t, set(fmt.Sprint("a", i), "m"))
	}
	must.EqOp(t, core.TooLarge, core.KindOf(set("more", "m")))
	must.NoError(t, set("other", "m"), must.Sprint("it is there already"))
	must.NoError(t, do(fsm.DeleteAlias("other")))
	must.NoError(t, set("more", "m"))

	for _, c := range []*raftv1.Command{
		fsm.PutAlias(core.Alias{Model: "m"}), fsm.PutAlias(core.Alias{Name: "a"}), fsm.PutAlias(core.Alias{Name: "a\x00", Model: "m"}),
		fsm.PutAlias(core.Alias{Name: strings.Repeat("a", 256), Model: "m"}), fsm.DeleteAlias(""),
		{Op: &raftv1.Command_PutAlias{PutAlias: &raftv1.PutAlias{Alias: &raftv1.Alias{Name: "a", Model: "m", CreateIndex: 1}}}},
		{Op: &raftv1.Command_PutAlias{}},
		{Op: &raftv1.Command_PutAlias{PutAlias: &raftv1.PutAlias{}}},
	} {
		must.EqOp(t, core.Invalid, core.KindOf(fsm.Validate(c)), must.Sprint(c))
	}
}
