package native

import (
	"fmt"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
)

func TestMissingByte(t *testing.T) {
	t.Parallel()
	var all []string
	for i := range 256 {
		all = append(all, fmt.Sprintf("<0x%02X>", i))
	}
	_, missing := missingByte(slices.Values(all))
	must.False(t, missing)
	all[0x41], all[0x42] = "A", "<0x4>"
	b, missing := missingByte(slices.Values(append(all, "<0x42", "0x42>", "<0x042>", "BB", "<0xGG>", "<0xaf>")))
	must.True(t, missing)
	must.Eq(t, 0x42, b)
	_, missing = missingByte(slices.Values(append(all, "B")))
	must.False(t, missing)
}
