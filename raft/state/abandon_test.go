package state_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/go-memdb"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/raft/state"
)

// Every query wakes its waiters when a restored store replaces this one, and Abandoned wakes those
// who wait for nothing else.
func TestAbandonWakesEveryQuery(t *testing.T) {
	t.Parallel()
	queries := 0
	for m := range reflect.TypeFor[*state.Snapshot]().Methods() {
		if m.Type.NumIn() < 2 || m.Type.In(1) != reflect.TypeFor[memdb.WatchSet]() {
			continue
		}
		queries++
		s, ws := filled(t), memdb.NewWatchSet()
		args := []reflect.Value{reflect.ValueOf(s.Snapshot()), reflect.ValueOf(ws)}
		for i := 2; i < m.Type.NumIn(); i++ {
			switch in := m.Type.In(i); in.Kind() {
			case reflect.String:
				args = append(args, reflect.ValueOf("h1"))
			default: // a yield
				args = append(args, reflect.MakeFunc(in, func([]reflect.Value) []reflect.Value { return []reflect.Value{reflect.ValueOf(true)} }))
			}
		}
		m.Func.Call(args)
		abandoned := s.Abandoned()
		select {
		case <-abandoned:
			t.Fatal("it is abandoned already")
		default:
		}
		s.Abandon()
		must.False(t, ws.Watch(time.After(10*time.Second)), must.Sprint(m.Name))
		<-abandoned
	}
	must.Greater(t, 20, queries)
}
