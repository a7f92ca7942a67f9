package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"syscall"
	"time"

	"github.com/rbee-project/rbee/core"
)

// nemesis breaks a cluster in ways drawn from a seed, one after the other, and repairs each.
type nemesis struct {
	c    *cluster
	rng  *rand.Rand
	http *http.Client

	kills, pauses, partitions int
	longest                   time.Duration // until all queens answered again
}

// fault breaks something, waits, and repairs it.
type fault func() error

func newNemesis(c *cluster, seed uint64) *nemesis {
	n := &nemesis{c: c, rng: rand.New(rand.NewPCG(seed, 1<<32)), http: c.httpClient()}
	c.t.Cleanup(n.http.CloseIdleConnections)
	return n
}

func (n *nemesis) String() string {
	return fmt.Sprintf("%d kills, %d pauses, %d partitions, all queens answered again after at most %.1f s", n.kills, n.pauses, n.partitions, n.longest.Seconds())
}

// run injects the given faults, or random ones, until enough returns true.
func (n *nemesis) run(r *registry, given []fault, enough func() bool) error {
	for i := 0; ; i++ {
		n.wait(time.Second, 3*time.Second)
		if i >= len(given) && (given != nil || enough()) {
			break
		}
		f := n.random()
		if given != nil {
			f = given[i]
		}
		if err := f(); err != nil {
			return err
		}
		if err := n.calm(r); err != nil {
			return err
		}
		if i%20 == 19 {
			fmt.Printf("  %d operations so far: %s\n", r.history.known(), n)
		}
	}
	for deadline := time.Now().Add(10 * time.Minute); !enough(); n.wait(50*time.Millisecond, 51*time.Millisecond) {
		if time.Now().After(deadline) {
			return errors.New("the clients do not get on")
		}
	}
	return nil
}

// random returns any fault that this cluster supports.
func (n *nemesis) random() fault {
	list := []fault{n.killLeader, n.killAny, n.killTwo, n.pauseLeader, n.pauseLeader, n.pauseAny}
	if n.c.lan != nil {
		list = append(list, n.unplugLeader, n.unplugLeader, n.unplugAny, n.cutPair, n.cutOneWay)
	}
	return list[n.rng.IntN(len(list))]
}

// between returns a random duration.
func (n *nemesis) between(from, to time.Duration) time.Duration {
	return from + time.Duration(n.rng.Int64N(int64(to-from)))
}

func (n *nemesis) wait(from, to time.Duration) {
	timer := time.NewTimer(n.between(from, to))
	<-timer.C
}

// queens returns all queens, running or not.
func (n *nemesis) queens() []*node {
	var list []*node
	for _, q := range n.c.nodes {
		if q.queen {
			list = append(list, q)
		}
	}
	return list
}

func (n *nemesis) any() *node {
	list := n.queens()
	return list[n.rng.IntN(len(list))]
}

// leader returns the queen that most others consider the leader, or any.
func (n *nemesis) leader() *node {
	if l := n.c.leaderNow(n.http); l != nil {
		return l
	}
	return n.any()
}

// leaderNow returns the queen that a majority of the queens considers the leader; nil: none.
func (c *cluster) leaderNow(hc *http.Client) *node {
	votes, queens := map[string]int{}, 0
	for _, q := range c.nodes {
		if !q.queen {
			continue
		}
		queens++
		if q.running() {
			votes[c.leaderAt(hc, q)]++
		}
	}
	for _, q := range c.nodes {
		if id := q.id(); q.queen && id != "" && votes[id] > queens/2 {
			return q
		}
	}
	return nil
}

// leaderAt returns the node id of the leader as a queen knows it; empty: none, or it does not
// answer.
func (c *cluster) leaderAt(hc *http.Client, q *node) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, q.url()+"/v1/hives?consistency=stale", nil)
	if err != nil {
		return ""
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := hc.Do(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	return resp.Header.Get("X-Rbee-Leader")
}

// calm waits until every queen serves linearizable reads.
func (n *nemesis) calm(r *registry) error {
	began := time.Now()
	for _, q := range n.queens() {
		for {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			_, err := r.get(ctx, q, "reg-000", core.ConsistencyLinearizable)
			cancel()
			if err == nil {
				break
			}
			if time.Since(began) > patience {
				return fmt.Errorf("%s does not serve %s after the fault: %w", q.name, patience, err)
			}
			n.wait(10*time.Millisecond, 20*time.Millisecond)
		}
	}
	n.longest = max(n.longest, time.Since(began))
	return nil
}

func (n *nemesis) kill(list ...*node) error {
	n.kills += len(list)
	for _, q := range list {
		q.kill()
	}
	n.wait(0, 3*time.Second)
	var errs []error
	for _, q := range list {
		errs = append(errs, q.launch())
	}
	return errors.Join(errs...)
}

func (n *nemesis) killLeader() error { return n.kill(n.leader()) }
func (n *nemesis) killAny() error    { return n.kill(n.any()) }

func (n *nemesis) killTwo() error {
	list := n.queens()
	n.rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return n.kill(list[:2]...)
}

// pause stops a queen for a part of its lease, or long enough for another one to lead.
func (n *nemesis) pause(q *node) error {
	n.pauses++
	if err := q.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	if n.rng.IntN(2) == 0 {
		n.wait(20*time.Millisecond, 600*time.Millisecond)
	} else {
		n.wait(600*time.Millisecond, 4*time.Second)
	}
	return q.signal(syscall.SIGCONT)
}

func (n *nemesis) pauseLeader() error { return n.pause(n.leader()) }
func (n *nemesis) pauseAny() error    { return n.pause(n.any()) }

// unplug disconnects a queen from all others.
func (n *nemesis) unplug(q *node) error {
	n.partitions++
	if err := n.c.lan.plug(q.ip, false); err != nil {
		return err
	}
	n.wait(200*time.Millisecond, 6*time.Second)
	return n.c.lan.plug(q.ip, true)
}

func (n *nemesis) unplugLeader() error { return n.unplug(n.leader()) }
func (n *nemesis) unplugAny() error    { return n.unplug(n.any()) }

// cutPair cuts the connection between the leader and another queen, while the third reaches both.
func (n *nemesis) cutPair() error {
	n.partitions++
	a := n.leader()
	b := n.other(a)
	err := errors.Join(n.c.lan.cut(a.ip, b.ip, true), n.c.lan.cut(b.ip, a.ip, true))
	n.wait(time.Second, 6*time.Second)
	return errors.Join(err, n.c.lan.cut(a.ip, b.ip, false), n.c.lan.cut(b.ip, a.ip, false))
}

// cutOneWay drops everything sent to the leader, or everything that it sends.
func (n *nemesis) cutOneWay() error {
	n.partitions++
	a, deaf := n.leader(), n.rng.IntN(2) == 0
	each := func(lost bool) (err error) {
		for _, b := range n.queens() {
			switch {
			case a == b:
			case deaf:
				err = errors.Join(err, n.c.lan.cut(b.ip, a.ip, lost))
			default:
				err = errors.Join(err, n.c.lan.cut(a.ip, b.ip, lost))
			}
		}
		return err
	}
	err := each(true)
	n.wait(time.Second, 6*time.Second)
	return errors.Join(err, each(false))
}

func (n *nemesis) other(than *node) *node {
	for {
		if q := n.any(); q != than {
			return q
		}
	}
}
