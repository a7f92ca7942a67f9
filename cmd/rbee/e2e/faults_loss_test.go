package e2e

import (
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
)

// lose drops a percentage of the packets to and from a machine, independently in each direction.
func (l *lan) lose(t testing.TB, address string, percent int) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("lossy networks need the program nft (nftables)")
	}
	nft := func(rule string) {
		must.NoError(t, l.hub.do(func() error {
			out, err := exec.Command("nft", rule).CombinedOutput()
			if err != nil {
				return fmt.Errorf("nft %s: %w: %s", rule, err, out)
			}
			return nil
		}))
	}
	nft("add table bridge loss")
	nft("add chain bridge loss forward { type filter hook forward priority 0; }")
	for _, direction := range []string{"iifname", "oifname"} {
		nft(fmt.Sprintf("add rule bridge loss forward %s %s ether type ip numgen random mod 100 < %d drop", direction, l.ports[address], percent))
	}
}

// dropUDP drops all UDP from one machine to another; with free, it removes all drops.
func (l *lan) dropUDP(t testing.TB, from, to string, free bool) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("blocked ports need the program nft (nftables)")
	}
	rules := []string{
		"add table bridge blocked", "add chain bridge blocked forward { type filter hook forward priority 0; }",
		fmt.Sprintf("add rule bridge blocked forward ip saddr %s ip daddr %s ip protocol udp drop", from, to),
	}
	if free {
		rules = []string{"delete table bridge blocked"}
	}
	for _, rule := range rules {
		must.NoError(t, l.hub.do(func() error {
			out, err := exec.Command("nft", rule).CombinedOutput()
			if err != nil {
				return fmt.Errorf("nft %s: %w: %s", rule, err, out)
			}
			return nil
		}))
	}
}

// A firewall that lets TCP through but no UDP is reported by the status of every queen and in the
// logs of both machines, with the port, as long as it lasts. No node is taken for dead because of
// it.
func TestBlockedUDPIsNamed(t *testing.T) {
	t.Parallel()
	c := newLANCluster(t)
	c.start(2, 2)
	q1, q2, hive := c.nodeNamed("queen-1"), c.nodeNamed("queen-2"), c.nodeNamed("hive-1")
	lines := func(n *node) string {
		s, err := c.client(n).Status(t.Context())
		must.NoError(t, err)
		var out []string
		for _, p := range s.Problems {
			if strings.Contains(p, "UDP") {
				out = append(out, p)
			}
		}
		for _, q := range s.Queens {
			must.Eq(t, "alive", q.Gossip, must.Sprint(q.Name))
		}
		return strings.Join(out, "\n")
	}
	until := func(want ...string) {
		t.Helper()
		began := time.Now()
		coretest.Eventually(t, patience, func() error {
			for _, n := range []*node{q1, q2} {
				got := lines(n)
				if len(want) == 0 && got != "" {
					return fmt.Errorf("%s: %s", n.name, got)
				}
				for _, w := range want {
					if !strings.Contains(got, w) {
						return fmt.Errorf("%s does not say %q: %s", n.name, w, got)
					}
				}
			}
			return nil
		})
		t.Logf("%v after %s", want, time.Since(began).Round(time.Second))
	}
	until()
	c.lan.dropUDP(t, q1.ip, q2.ip, false) // blocking one direction is enough
	c.lan.dropUDP(t, hive.ip, q2.ip, false)
	port := " is blocked, so that gossip is slow: open port 7835 for UDP"
	until("UDP between queen-1 and queen-2"+port, "UDP between hive-1 and queen-2"+port)
	for _, n := range []*node{q1, q2, hive} {
		coretest.Eventually(t, patience, func() error {
			if !strings.Contains(n.log.String(), "UDP to or from a node is blocked") {
				return fmt.Errorf("%s does not say it in its log", n.name)
			}
			return nil
		})
	}
	must.StrNotContains(t, c.nodeNamed("hive-2").log.String(), "UDP")
	c.lan.dropUDP(t, q1.ip, q2.ip, true)
	until()
}

// busy keeps the processor busy for a share of the time until stop is closed.
func busy(wg *sync.WaitGroup, stop <-chan struct{}, share float64) {
	const slice = 50 * time.Millisecond
	for range runtime.NumCPU() {
		wg.Go(func() {
			for {
				for began := time.Now(); time.Since(began) < time.Duration(share*float64(slice)); {
				}
				select {
				case <-stop:
					return
				case <-time.After(time.Duration((1 - share) * float64(slice))):
				}
			}
		})
	}
}

// C-25: a network that loses 30 % of all packets in each direction, and processors that are busy
// for 80 % of the time, do not make a hive count as dead.
func TestFaultC25NetworkLosesPackets(t *testing.T) {
	slowFault(t)
	seconds := envOr(t, "RBEE_FAULT_LOSS_SECONDS", 60)
	c := newLANCluster(t)
	c.start(3, 3)
	hives := c.nodes[3:]
	for _, h := range hives {
		c.lan.lose(t, h.ip, 30)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	busy(&wg, stop, 0.8)
	said := func(what string) (n int) {
		for _, q := range c.queens() {
			n += strings.Count(q.log.String(), what)
		}
		return n
	}
	const down, silent = "hive is down", "hive does not report"
	before := said(down)
	suspected := said(silent)
	sleep(time.Duration(seconds) * time.Second)
	falsely := said(down) - before
	suspected = said(silent) - suspected
	close(stop)
	wg.Wait()
	fmt.Printf("C-25: 30 %% of the packets from and to %d hives are lost for %d s, the processors are busy\n", len(hives), seconds)
	figure("hives that were taken for dead: %d; suspicions, at any queen: %d", falsely, suspected)
	must.Zero(t, falsely)
	must.Positive(t, suspected) // so packets were lost

	// Real death is still detected.
	cut := time.Now()
	must.NoError(t, c.lan.plug(hives[0].ip, false))
	cl := c.client(c.queens()...)
	coretest.Eventually(t, patience, func() error {
		h, err := cl.Hive(t.Context(), hives[0].id())
		if err == nil && h.Status != core.HiveDown {
			err = fmt.Errorf("the hive is %s", h.Status)
		}
		return err
	})
	figure("and one whose cable is pulled is down after %s", time.Since(cut).Round(10*time.Millisecond))
}
