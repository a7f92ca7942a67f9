package dispatch

import (
	"fmt"
	"testing"

	"github.com/shoenig/test/must"
)

func TestRequestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	var m requestMemory
	for i := range 3 * maxRequests {
		m.remember(fmt.Sprint(i), "h")
		m.remember(fmt.Sprint(i), "h")
	}
	must.MapLen(t, maxRequests, m.hives)
	must.Len(t, maxRequests, m.order)
	must.MapContainsKey(t, m.hives, fmt.Sprint(3*maxRequests-1))
}
