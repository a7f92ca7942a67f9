package gossip_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gossip"
)

func TestTrafficIsEncrypted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var mu sync.Mutex
		packets := 0
		tapped := r.net.Listen(address(1))
		tapped.Tap(func(b []byte) {
			mu.Lock()
			defer mu.Unlock()
			packets++
			if bytes.Contains(b, []byte("node-1")) || bytes.Contains(b, []byte("10.0.0.1:7834")) {
				t.Error("a packet has the node's name or address in clear")
			}
		})
		a := r.start(1, func(o *gossip.Options) { o.Transport = tapped })
		b := r.start(2)
		within(t, 5*time.Second, "1:alive 2:alive", a, b)
		must.NoError(t, a.Update(func(m *gossip.Member) { m.FSM = 3 }))
		time.Sleep(5 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		must.Greater(t, 5, packets)
	})
}

func TestKeysRotateUnderLoad(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		nodes := r.cluster(4)
		all := "1:alive 2:alive 3:alive 4:alive"
		within(t, 5*time.Second, all, nodes...)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var failed int
		var mu sync.Mutex
		for i, n := range nodes {
			wg.Go(func() {
				for ctx.Err() == nil {
					if err := n.Ping(ctx, id(1+(i+1)%4)); err != nil && ctx.Err() == nil {
						mu.Lock()
						failed++
						mu.Unlock()
					}
					time.Sleep(20 * time.Millisecond)
				}
			})
		}
		keys := func(k ...byte) (out gossip.Keys) {
			for _, b := range k {
				out = append(out, key(b))
			}
			return out
		}
		for _, step := range []gossip.Keys{keys(1, 2), keys(2, 1), keys(2), keys(2, 3, 4), keys(3, 2, 4), keys(3, 4), keys(4, 3), keys(4)} {
			for _, n := range nodes {
				must.NoError(t, n.SetKeys(step))
				must.Eq(t, step, n.Keys())
				time.Sleep(300 * time.Millisecond)
			}
			time.Sleep(2 * time.Second)
		}
		must.Eq(t, core.Invalid, core.KindOf(nodes[0].SetKeys(nil)))
		must.Eq(t, core.Invalid, core.KindOf(nodes[0].SetKeys(gossip.Keys{[]byte("short")})))
		cancel()
		wg.Wait()
		must.Eq(t, 0, failed)
		for _, n := range nodes {
			must.Eq(t, all, statuses(n))
		}
		// The removed key decrypts nothing any more.
		old := r.start(8)
		time.Sleep(10 * time.Second)
		must.Eq(t, "8:alive", statuses(old))
		fresh := r.start(7, func(o *gossip.Options) { o.Keys = keys(4) })
		within(t, 5*time.Second, all+" 7:alive", nodes[0], fresh)
	})
}

// C-29: a part of the pool that misses a rotation rejoins as long as its key has not been removed;
// after the removal, it rejoins only once it has the new key.
func TestKeysRotateDuringPartition(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		nodes := r.cluster(3)
		all := "1:alive 2:alive 3:alive"
		within(t, 5*time.Second, all, nodes...)
		cut := func() {
			r.net.Partition([]string{address(1), address(2)}, []string{address(3)})
			within(t, time.Minute, "1:alive 2:alive 3:failed", nodes[:2]...)
		}
		cut()
		for _, n := range nodes[:2] {
			must.NoError(t, n.SetKeys(gossip.Keys{key(1), key(2)}))
		}
		r.net.Heal()
		within(t, 40*time.Second, all, nodes...)
		must.NoError(t, nodes[2].SetKeys(gossip.Keys{key(1), key(2)}))
		cut()
		for _, n := range nodes[:2] {
			must.NoError(t, n.SetKeys(gossip.Keys{key(2), key(1)}))
		}
		r.net.Heal()
		within(t, 40*time.Second, all, nodes...)
		must.NoError(t, nodes[2].SetKeys(gossip.Keys{key(1)})) // it never received the new key
		cut()
		for _, n := range nodes[:2] {
			must.NoError(t, n.SetKeys(gossip.Keys{key(2)}))
		}
		r.net.Heal()
		time.Sleep(2 * time.Minute)
		must.Eq(t, "1:alive 2:alive 3:failed", statuses(nodes[0]))
		must.NoError(t, nodes[2].SetKeys(gossip.Keys{key(2)}))
		within(t, 40*time.Second, all, nodes...)
	})
}

func TestLossWithoutFalseDeaths(t *testing.T) {
	t.Parallel()
	for size, patience := range map[int]time.Duration{3: 10 * time.Minute, 5: 10 * time.Minute, 12: time.Minute} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				nodes := r.cluster(size)
				var all []string
				for _, m := range nodes {
					all = append(all, strings.TrimLeft(m.Self().ID, "0")+":alive")
				}
				within(t, 10*time.Second, strings.Join(all, " "), nodes...)
				r.net.SetLoss(0.3)
				deaths := 0
				for began := time.Now(); time.Since(began) < patience; time.Sleep(time.Second) {
					for _, n := range nodes {
						deaths += strings.Count(statuses(n), "failed")
					}
				}
				must.Eq(t, 0, deaths)
			})
		})
	}
}

func TestGarbageLosesNoMember(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var mu sync.Mutex
		var recorded [][]byte
		tapped := r.net.Listen(address(2))
		tapped.Tap(func(b []byte) {
			mu.Lock()
			defer mu.Unlock()
			if len(recorded) < 500 {
				recorded = append(recorded, b)
			}
		})
		nodes := []*node{r.start(1), r.start(2, func(o *gossip.Options) { o.Transport = tapped }), r.start(3)}
		all := "1:alive 2:alive 3:alive"
		within(t, 5*time.Second, all, nodes...)
		time.Sleep(5 * time.Second)
		label := append([]byte{244, byte(len(cluster))}, cluster...)
		mu.Lock()
		replay := append([][]byte(nil), recorded...)
		mu.Unlock()
		for i := range 5_000 {
			junk := bytes.Repeat([]byte{byte(i), byte(i >> 8), byte(i * 7)}, i%400)
			if i%2 == 0 {
				junk = append(append([]byte(nil), label...), junk...)
			}
			if i%10 == 0 {
				junk = replay[i/10%len(replay)]
			}
			r.net.Inject("10.9.9.9:1", address(1+i%3), junk)
			if i%100 == 0 {
				time.Sleep(50 * time.Millisecond)
				for _, n := range nodes {
					must.Eq(t, all, statuses(n))
				}
			}
		}
		for i := range 3 {
			must.NoError(t, nodes[i].Ping(t.Context(), id(1+(i+1)%3)))
		}
	})
}

// Replacing keys loses no member, although the nodes learn the new keys at different times; a node
// that never learns them, such as a revoked one, is shut out.
func TestReplaceKeys(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		nodes := r.cluster(4)
		time.Sleep(20 * time.Second)
		revoked := nodes[3]
		for _, n := range nodes[:3] {
			must.NoError(t, n.ReplaceKeys(gossip.Keys{key(2)}))
			must.NoError(t, n.ReplaceKeys(gossip.Keys{key(2)})) // repeated calls with the same keys
			// other nodes may not know the new key yet
			must.Eq(t, key(1), n.Keys()[0])
			time.Sleep(700 * time.Millisecond)
		}
		for range 60 {
			time.Sleep(time.Second)
			for _, n := range nodes[:3] {
				must.StrHasPrefix(t, "1:alive 2:alive 3:alive", statuses(n))
			}
		}
		for _, n := range nodes[:3] {
			must.True(t, sameKeys(n.Keys(), key(2)))
			must.StrContains(t, statuses(n), "4:failed")
		}
		must.StrNotContains(t, statuses(revoked), "1:alive")
		must.Eq(t, core.Invalid, core.KindOf(nodes[0].ReplaceKeys(nil)))

		// Two replacements within one step: the last one wins.
		must.NoError(t, nodes[0].ReplaceKeys(gossip.Keys{key(3)}))
		time.Sleep(4 * time.Second)
		must.NoError(t, nodes[0].ReplaceKeys(gossip.Keys{key(4)}))
		time.Sleep(10 * time.Second)
		must.True(t, sameKeys(nodes[0].Keys(), key(4)))
	})
}

func sameKeys(have gossip.Keys, want ...[]byte) bool {
	return slices.EqualFunc(have, want, slices.Equal[[]byte])
}
