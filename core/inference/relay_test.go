package inference

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/inference/sse"
)

const oneToken = `data: {"choices":[{"index":0,"delta":{"content":"t7"},"finish_reason":null}]}` + "\n\n"

// Relaying one event, from reading it to writing its bytes, allocates nothing.
func TestRelayAllocatesNothing(t *testing.T) { // not parallel: it counts allocations
	event := []byte(oneToken)
	r := bytes.NewReader(event)
	sp := sse.NewSplitter()
	c := &call{s: New(Options{}), r: Request{At: time.Now()}}
	allocs := testing.AllocsPerRun(1000, func() {
		r.Reset(event)
		_, _ = sp.Fill(r)
		block, events := sp.Next()
		if len(block) != len(event) || events != 1 {
			t.Fatal("not the event")
		}
		c.count(sp, events, time.Now())
	})
	must.Zero(t, allocs)
}

// BenchmarkRelayEvent measures rbee's own work per event, without the kernel's.
func BenchmarkRelayEvent(b *testing.B) {
	sp := sse.NewSplitter()
	r := strings.NewReader(oneToken)
	c := &call{s: New(Options{}), r: Request{At: time.Now()}}
	b.ReportAllocs()
	b.SetBytes(int64(len(oneToken)))
	for b.Loop() {
		r.Reset(oneToken)
		_, _ = sp.Fill(r)
		_, events := sp.Next()
		c.count(sp, events, time.Now())
	}
}

// BenchmarkReadFacts measures the check of a body before it is passed on.
func BenchmarkReadFacts(b *testing.B) {
	for _, size := range []int{1 << 10, 100 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			body := []byte(`{"model":"tiny","stream":true,"messages":[{"role":"user","content":"` + strings.Repeat("lorem é ", size/9) + `"}]}`)
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				if _, err := readFacts(body, ""); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
