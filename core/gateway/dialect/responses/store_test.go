package responses

import (
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
)

func TestStore(t *testing.T) {
	t.Parallel()
	var s Store
	s.put("a", "alice", answer{Items: []item{{Name: "x"}}})
	_, ok := s.get("a", "bob")
	must.False(t, ok)
	got, ok := s.get("a", "alice")
	must.True(t, ok)
	must.Eq(t, "x", got.Items[0].Name)

	large := []item{{Arguments: strings.Repeat("x", maxKeptOne-1000)}}
	for i := range 2 * maxKept / maxKeptOne {
		s.put(strconv.Itoa(i), "bob", answer{Items: large})
		_, ok := s.get("0", "bob") // used repeatedly, it stays
		must.True(t, ok)
	}
	must.LessEq(t, maxKept, s.bytes)
	_, ok = s.get("1", "bob")
	must.False(t, ok)
	s.put("huge", "bob", answer{Items: []item{{Arguments: strings.Repeat("x", maxKeptOne)}}})
	_, ok = s.get("huge", "bob")
	must.False(t, ok)

	var many Store
	for i := range maxKeptCount + 5 {
		many.put(strconv.Itoa(i), "bob", answer{})
	}
	must.Eq(t, maxKeptCount, many.order.Len())
	must.MapLen(t, maxKeptCount, many.byID)
	many.put("9999", "bob", answer{Items: []item{{Name: "again"}}})
	must.Eq(t, maxKeptCount, many.order.Len())
}

// fakeRoom has room for left bytes.
type fakeRoom struct{ left int64 }

func (r *fakeRoom) Take(n int64) bool {
	if n > r.left {
		return false
	}
	r.left -= n
	return true
}

func (r *fakeRoom) Give(n int64) { r.left += n }

// A store charges its shared room, drops its oldest entry for a new one, and yields memory on
// request.
func TestStoreRoom(t *testing.T) {
	t.Parallel()
	room := &fakeRoom{10_000}
	s := Store{Room: room}
	has := func(id string) bool {
		_, ok := s.get(id, "k")
		return ok
	}
	items := []item{{Arguments: strings.Repeat("x", 3800)}} // 4000 bytes
	for _, id := range []string{"a", "b", "c"} {
		s.put(id, "k", answer{Items: items})
	}
	must.Eq(t, 2000, room.left)
	must.False(t, has("a"))
	s.put("b", "k", answer{Items: items}) // put again
	must.Eq(t, 2000, room.left)
	s.put("d", "k", answer{Items: []item{{Arguments: strings.Repeat("x", 20_000)}}})
	must.False(t, has("d"))
	must.Eq(t, 10_000, room.left)

	s.put("e", "k", answer{Items: items})
	s.put("f", "k", answer{Items: items})
	must.True(t, s.Spare(1))
	must.False(t, has("e"))
	must.True(t, has("f"))
	must.True(t, s.Spare(1_000_000))
	must.False(t, s.Spare(1))
	must.Eq(t, 10_000, room.left)
}

// Conversations that are no longer continued expire.
func TestStoreExpires(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		room := &fakeRoom{10_000}
		s := Store{Room: room}
		s.put("old", "k", answer{Items: []item{{}}})
		s.put("used", "k", answer{Items: []item{{}}})
		time.Sleep(keptFor / 2)
		_, ok := s.get("used", "k")
		must.True(t, ok)
		s.Expire(time.Now())
		must.MapLen(t, 2, s.byID)
		time.Sleep(keptFor / 2)
		s.Expire(time.Now())
		must.MapLen(t, 1, s.byID)
		_, ok = s.get("used", "k")
		must.True(t, ok)
		time.Sleep(keptFor)
		s.Expire(time.Now())
		must.Eq(t, 10_000, room.left)
	})
}
