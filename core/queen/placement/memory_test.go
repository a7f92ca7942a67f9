package placement

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
)

// A hive that failed to start a model is asked again if there is no other, and after a while.
func TestStartMemory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var m startMemory
		must.False(t, m.rests("m", "h"))
		m.fail("m", "h")
		must.True(t, m.rests("m", "h"))
		must.False(t, m.rests("m", "other"))
		must.Eq(t, 0, m.endedFor("m", "one"))
		time.Sleep(hiveRest)
		must.False(t, m.rests("m", "h"))
		must.Eq(t, hiveRest, m.endedFor("m", "one"))
		must.Eq(t, 0, m.endedFor("m", "two"))
		for i := range 2 * maxStartMemory {
			m.fail(fmt.Sprint(i), "h")
		}
		must.MapLen(t, maxStartMemory, m.models)
	})
}
