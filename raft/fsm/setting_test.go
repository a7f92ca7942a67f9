package fsm_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

func TestPutSetting(t *testing.T) {
	t.Parallel()
	f := applied(t, fsm.New(), fsm.PutSetting("a", "1"), fsm.PutSetting("b", ""), fsm.PutSetting("a", "1"))
	s := f.State().Snapshot()
	must.Eq(t, []state.Setting{{Name: "a", Value: "1", Index: 1}, {Name: "b", Index: 2}}, s.Settings(nil))
	f = applied(t, f, fsm.PutSetting("a", "2"), fsm.ResetSetting("b"), fsm.ResetSetting("b"))
	s = f.State().Snapshot()
	must.Eq(t, []state.Setting{{Name: "a", Value: "2", Index: 4}}, s.Settings(nil))
	_, ok := s.Setting(nil, "b")
	must.False(t, ok)
}

// A setting that is already set can always be changed.
func TestSettingsBounded(t *testing.T) {
	t.Parallel()
	f := fsm.New()
	name := func(i int) string { return fmt.Sprintf("s%04d", i) }
	must.NoError(t, f.State().Update(1, func(txn *state.Txn) error {
		for i := range state.MaxSettings {
			txn.PutSetting(state.Setting{Name: name(i), Value: "1", Index: 1})
		}
		return nil
	}))
	err := apply(t, f, 2, fsm.PutSetting("another", "1")).Err
	must.Eq(t, core.TooLarge, core.KindOf(err))
	must.NoError(t, apply(t, f, 3, fsm.PutSetting(name(0), "2")).Err)
	must.NoError(t, apply(t, f, 4, fsm.ResetSetting(name(1))).Err)
	must.NoError(t, apply(t, f, 5, fsm.PutSetting("another", "1")).Err)
}

func TestValidateSetting(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]*raftv1.Command{
		"no name":                 fsm.PutSetting("", "1"),
		"long name":               fsm.PutSetting(strings.Repeat("n", fsm.MaxIDBytes+1), "1"),
		"long value":              fsm.PutSetting("a", strings.Repeat("v", fsm.MaxTextBytes+1)),
		"control character":       fsm.PutSetting("a", "1\n"),
		"name with a NUL, to end": fsm.ResetSetting("a\x00"),
	} {
		must.Eq(t, core.Invalid, core.KindOf(fsm.Validate(c)), must.Sprint(name))
	}
}

// A queen without settings can read the leader's snapshots until one is set.
func TestSettingsAndOlderQueens(t *testing.T) {
	t.Parallel()
	older := fsm.NewTable(2, fsm.Features())
	f := applied(t, fsm.New(), fsm.PutSetting("a", "1"))
	_, err := older.ReadSnapshot(bytes.NewReader(snapshot(t, f)))
	must.Eq(t, core.Unsupported, core.KindOf(err))
	f = applied(t, f, fsm.ResetSetting("a"))
	_, err = older.ReadSnapshot(bytes.NewReader(snapshot(t, f)))
	must.NoError(t, err)
	must.Eq(t, []string{"settings of the cluster"}, older.Missing(fsm.PutSetting("a", "1"), 2))
}
