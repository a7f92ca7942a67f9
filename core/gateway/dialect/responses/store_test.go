package responses

import (
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestStore(t *testing.T) {
	t.Parallel()
	var s Store
	s.put("a", "alice", []item{{Name: "x"}})
	_, ok := s.get("a", "bob")
	must.False(t, ok)
	got, ok := s.get("a", "alice")
	must.True(t, ok)
	must.Eq(t, "x", got[0].Name)

	large := []item{{Arguments: strings.Repeat("x", maxKeptOne-1000)}}
	for i := range 2 * maxKept / maxKeptOne {
		s.put(strconv.Itoa(i), "bob", large)
		_, ok := s.get("0", "bob") // used again and again, it stays
		must.True(t, ok)
	}
	must.LessEq(t, maxKept, s.bytes)
	_, ok = s.get("1", "bob")
	must.False(t, ok)
	s.put("huge", "bob", []item{{Arguments: strings.Repeat("x", maxKeptOne)}})
	_, ok = s.get("huge", "bob")
	must.False(t, ok)

	var many Store
	for i := range maxKeptCount + 5 {
		many.put(strconv.Itoa(i), "bob", nil)
	}
	must.Eq(t, maxKeptCount, many.order.Len())
	must.MapLen(t, maxKeptCount, many.byID)
	many.put("9999", "bob", []item{{Name: "again"}})
	must.Eq(t, maxKeptCount, many.order.Len())
}
