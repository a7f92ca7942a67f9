package gossip_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/gossip"
)

// addressOf returns the address at which a node sees another.
func addressOf(n *node, i int) string {
	m, _ := n.Member(id(i))
	return m.GossipAddress
}

// awaits waits until is holds on all nodes, and returns how long that took.
func awaits(t *testing.T, d time.Duration, what string, is func(n *node) bool, nodes ...*node) time.Duration {
	t.Helper()
	began := time.Now()
	for _, n := range nodes {
		for !is(n) {
			if time.Since(began) > d {
				t.Fatalf("after %s node %s does not see: %s", d, n.address, what)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return time.Since(began)
}

// A node that loses its address and gets another one is found there within seconds, is never taken
// for dead, and still hears the others.
func TestMove(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		moving := r.net.Listen(address(3))
		nodes := append(r.cluster(2), r.start(3, func(o *gossip.Options) { o.Transport = moving }), r.start(4))
		all := "1:alive 2:alive 3:alive 4:alive"
		within(t, 5*time.Second, all, nodes...)
		moving.Lose()
		time.Sleep(2 * time.Second)
		nodes[2].Move("10.0.0.33")
		here := func(n *node) bool { return addressOf(n, 3) == "10.0.0.33:7835" }
		t.Logf("all know the new address after %s", awaits(t, 5*time.Second, "the new address", here, nodes...))
		for range 90 {
			for _, n := range nodes {
				must.Eq(t, all, statuses(n))
				must.Len(t, 0, n.conflicts.list())
			}
			time.Sleep(time.Second)
		}
		must.NoError(t, nodes[2].Update(func(m *gossip.Member) { m.FSM = 7 }))
		must.NoError(t, nodes[0].Update(func(m *gossip.Member) { m.FSM = 8 }))
		awaits(t, 5*time.Second, "what both said since", func(n *node) bool {
			a, _ := n.Member(id(3))
			b, _ := n.Member(id(1))
			return a.FSM == 7 && b.FSM == 8
		}, nodes...)
		nodes[3].stop() // the moved node notices one that dies after the move
		awaits(t, time.Minute, "a death", func(n *node) bool { m, _ := n.Member(id(4)); return m.Status == gossip.Failed }, nodes[:3]...)
	})
}

// A node that moves still notices another that dies meanwhile.
func TestMoveDuringDeath(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		nodes := r.cluster(3)
		within(t, 5*time.Second, "1:alive 2:alive 3:alive", nodes...)
		nodes[2].stop()
		nodes[1].Move("10.0.0.22")
		within(t, time.Minute, "1:alive 2:alive 3:failed", nodes[:2]...)
	})
}

// When packets between two nodes are dropped, both notice, and neither is taken for dead.
func TestDeaf(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		nodes := r.cluster(3)
		all := "1:alive 2:alive 3:alive"
		within(t, 5*time.Second, all, nodes...)
		deaf := func(n *node) string {
			out := ""
			for _, m := range n.Deaf() {
				out += m.Name + " "
			}
			return out
		}
		r.net.SetLoss(0.3)
		time.Sleep(3 * time.Minute) // ordinary losses are not reported
		for _, n := range nodes {
			must.Eq(t, "", deaf(n))
		}
		r.net.SetLoss(0)
		r.net.CutPackets(address(1), address(2)) // one direction is enough
		took := awaits(t, 30*time.Second, "the other is deaf", func(n *node) bool {
			return deaf(n) == map[string]string{address(1): "node-2 ", address(2): "node-1 "}[n.address]
		}, nodes[:2]...)
		t.Logf("noticed after %s", took)
		for range 60 {
			for _, n := range nodes {
				must.Eq(t, all, statuses(n))
			}
			time.Sleep(time.Second)
		}
		must.Eq(t, "", deaf(nodes[2]))
		r.net.Heal()
		awaits(t, 15*time.Second, "packets get through again", func(n *node) bool { return deaf(n) == "" }, nodes...)

		nodes[2].stop() // a dead node is not deaf
		time.Sleep(time.Minute)
		must.Eq(t, "", deaf(nodes[0])+deaf(nodes[1]))
	})
}

// forgedDeath returns memberlist's message that a node is dead, as any holder of the key can forge
// it.
func forgedDeath(t *testing.T, victim string, incarnation uint32) []byte {
	t.Helper()
	text := func(b []byte, s string) []byte { return append(append(b, 0xa0|byte(len(s))), s...) }
	plain := append([]byte{5}, 0x83) // a dead message: a map of three
	plain = binary.BigEndian.AppendUint32(append(text(plain, "Incarnation"), 0xce), incarnation)
	plain = text(text(text(text(plain, "Node"), victim), "From"), "ffffffff")
	block, err := aes.NewCipher(key(1))
	must.NoError(t, err)
	gcm, err := cipher.NewGCM(block)
	must.NoError(t, err)
	nonce := make([]byte, gcm.NonceSize())
	_, _ = rand.Read(nonce)
	packet := append([]byte{244, byte(len(cluster))}, cluster...)
	packet = append(append(packet, 1), nonce...)
	return gcm.Seal(packet, nonce, plain, []byte(cluster))
}

// A key holder reports a living node dead at memberlist's highest incarnation, which the node
// cannot exceed: it stays alive for the others and rejoins.
func TestForgedDeath(t *testing.T) {
	t.Parallel()
	for _, incarnation := range []uint32{1000, math.MaxUint32} {
		t.Run(fmt.Sprint(incarnation), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				nodes := r.cluster(4)
				all := "1:alive 2:alive 3:alive 4:alive"
				within(t, 5*time.Second, all, nodes...)
				for range 3 {
					for i := range 4 {
						r.net.Inject("10.0.0.66:7835", address(i+1), forgedDeath(t, id(2), incarnation))
					}
					for range 20 {
						for _, n := range nodes {
							must.Eq(t, all, statuses(n))
						}
						time.Sleep(time.Second)
					}
				}
				time.Sleep(2 * time.Minute)
				must.NoError(t, nodes[1].Update(func(m *gossip.Member) { m.FSM = 9 }))
				awaits(t, time.Minute, "what the node says", func(n *node) bool { m, _ := n.Member(id(2)); return m.FSM == 9 }, nodes...)
				for _, n := range nodes {
					must.Eq(t, all, statuses(n))
				}
				nodes[1].stop()
				within(t, time.Minute, "1:alive 2:failed 3:alive 4:alive", nodes[0], nodes[2], nodes[3])
			})
		})
	}
}
