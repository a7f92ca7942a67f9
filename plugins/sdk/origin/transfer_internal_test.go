package origin

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestContentRange(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][3]int64{
		"bytes 5-9/10": {5, 10, 1}, "bytes */10": {0, 10, 1}, "bytes 5-9/*": {5, -1, 1}, "bytes 0-0/1": {0, 1, 1},
		"": {}, "5-9/10": {}, "bytes 9-5/10": {}, "bytes 5-10/10": {}, "bytes -5-9/10": {}, "bytes a-b/c": {}, "bytes 5-9": {}, "bytes 5-9/-1": {}, "bytes 5/10": {},
	} {
		start, whole, ok := contentRange(text)
		must.Eq(t, want[2] == 1, ok, must.Sprint(text))
		if ok {
			must.Eq(t, [2]int64{want[0], want[1]}, [2]int64{start, whole}, must.Sprint(text))
		}
	}
}
