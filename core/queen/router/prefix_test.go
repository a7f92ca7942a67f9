package router

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func TestMemory(t *testing.T) {
	t.Parallel()
	m := newMemory(8)
	var workers []*core.Worker
	for _, nonce := range []string{"a", "b", "c", "d", "e"} {
		workers = append(workers, &core.Worker{Hive: "h", Nonce: nonce})
	}
	count := func(w int, marks ...uint64) int { return m.have(marks)[m.hash(workers[w])] }

	must.Eq(t, 0, count(0, 1, 2, 3))
	m.sent([]uint64{1, 2, 3}, workers[0])
	must.Eq(t, 3, count(0, 1, 2, 3, 4))
	must.Eq(t, 2, count(0, 1, 2, 9))
	must.Eq(t, 0, count(0, 9, 2, 3)) // a mark stands for everything before it as well
	must.Eq(t, 0, count(1, 1, 2, 3))

	m.sent([]uint64{1, 2}, workers[1])
	must.Eq(t, 3, count(0, 1, 2, 3))
	must.Eq(t, 2, count(1, 1, 2, 3))
	for _, w := range workers[1:] { // the last four of five
		m.sent([]uint64{1}, w)
		m.sent([]uint64{1}, w)
	}
	must.Eq(t, 0, count(0, 1))
	for w := range workers[1:] {
		must.Eq(t, 1, count(w+1, 1))
	}

	// Marks in use stay, and the memory never holds much more than that.
	for mark := range uint64(1000) {
		m.sent([]uint64{1, 1000 + mark}, workers[4])
		must.LessEq(t, 16, len(m.young)+len(m.old))
	}
	must.Eq(t, 1, count(4, 1))
	must.Eq(t, 0, count(4, 2))
}
