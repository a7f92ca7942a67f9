package setting

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func TestRows(t *testing.T) {
	t.Parallel()
	must.True(t, slices.IsSortedFunc(All(), func(a, b Spec) int { return strings.Compare(a.Name, b.Name) }))
	for _, s := range All() {
		found, err := Find(s.Name)
		must.NoError(t, err)
		must.Eq(t, s.Name, found.Name)
		must.NotEq(t, "", s.Doc)
		must.NotEq(t, "", s.Values)
		if s.Default != "" {
			must.NoError(t, s.Check(s.Default))
		}
	}
}

func TestFindUnknown(t *testing.T) {
	t.Parallel()
	_, err := Find("token_grce")
	must.Eq(t, core.NotFound, core.KindOf(err))
	must.StrContains(t, core.HintOf(err), "token_grace")
}

func TestDuration(t *testing.T) {
	t.Parallel()
	s := duration(Spec{Name: "s", Default: "1m"}, time.Second, time.Hour)
	for text, ok := range map[string]bool{"1s": true, "1h": true, "999ms": false, "1h1ns": false, "": false, "1": false, "soon": false} {
		err := s.Check(text)
		must.Eq(t, ok, err == nil, must.Sprint(text))
		v, set := s.Value(text, true)
		must.Eq(t, ok, set, must.Sprint(text))
		if !ok {
			must.Eq(t, core.Invalid, core.KindOf(err))
			must.StrContains(t, core.HintOf(err), "from 1s to 1h0m0s")
			must.Eq(t, time.Minute, v)
		}
	}
	v, set := s.Value("2s", false)
	must.Eq(t, time.Minute, v)
	must.False(t, set)
	v, _ = s.Value("2s", true)
	must.Eq(t, 2*time.Second, v)
}
