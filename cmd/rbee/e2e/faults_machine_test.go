package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
)

// These are the faults of networks and disks. They need root.

// replica returns the registry as one queen has it, without what every queen observes for itself.
func (c *cluster) replica(hc *http.Client, q *node) (string, error) {
	var all []string
	for _, path := range []string{"hives", "workers"} {
		ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, q.url()+"/v1/"+path+"?consistency=stale", nil)
		if err != nil {
			return "", err
		}
		req.Header.Set("Authorization", "Bearer "+c.token)
		resp, err := hc.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		var list struct {
			Data []struct {
				ID          string `json:"id"`
				Version     string `json:"version"`
				Nonce       string `json:"nonce"`
				Incarnation uint64 `json:"incarnation"`
				CreateIndex uint64 `json:"create_index"`
				ModifyIndex uint64 `json:"modify_index"`
			} `json:"data"`
		}
		if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
			return "", err
		}
		for _, e := range list.Data {
			all = append(all, fmt.Sprintf("%s %+v", path, e))
		}
	}
	slices.Sort(all)
	if len(all) == 0 {
		return "", errors.New("the registry is empty")
	}
	return strings.Join(all, "\n"), nil
}

// converged waits until all queens have the same registry, and returns how long that took.
func (c *cluster) converged() time.Duration {
	c.t.Helper()
	hc := c.httpClient()
	defer hc.CloseIdleConnections()
	began := time.Now()
	coretest.Eventually(c.t, patience, func() error {
		first := ""
		for _, q := range c.queens() {
			text, err := c.replica(hc, q)
			switch {
			case err != nil:
				return err
			case first == "":
				first = text
			case first != text:
				return fmt.Errorf("the registries differ:\n%s\n\n%s", first, text)
			}
		}
		return nil
	})
	return time.Since(began)
}

func TestFaultC06LeaderIsCutOff(t *testing.T) {
	slowFault(t)
	c := newLANCluster(t)
	c.start(3, 1)
	c.serve()
	r := newRegistry(c)
	leader := c.leader()
	others := c.followers(leader)
	value := r.mustWrite(leader, "before")
	w := r.writer(2, others[0], "majority")
	w.await(t, time.Now())
	cut := time.Now()
	each := func(lost bool) {
		for _, q := range others {
			must.NoError(t, c.lan.cut(leader.ip, q.ip, lost))
			must.NoError(t, c.lan.cut(q.ip, leader.ip, lost))
		}
	}
	each(true)
	w.await(t, cut.Add(time.Second))
	gap := w.gap(cut)
	fmt.Println("C-06: the leader is cut off from the other queens")
	promised(t, "write gap of the majority", gap, 2*time.Second)
	promised(t, "the minority refuses a write and a consistent read after", r.refused(leader, "minority"), 7*time.Second)

	// Its own replica still serves inference, and reports that it is stale.
	seconds := envOr(t, "RBEE_FAULT_PARTITION_SECONDS", 30)
	l := newLoad(c)
	asked, stale := 0, 0
	for time.Since(cut) < time.Duration(seconds)*time.Second {
		must.NoError(t, l.ask(t.Context(), leader, asked%4 == 0, 8))
		asked++
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, leader.url()+"/v1/models", nil)
		must.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+c.token)
		resp, err := l.http.Do(req)
		must.NoError(t, err)
		resp.Body.Close()
		must.Eq(t, http.StatusOK, resp.StatusCode)
		if resp.Header.Get("X-Rbee-Stale") == "true" {
			stale++
		}
		sleep(200 * time.Millisecond)
	}
	figure("inference through the minority: %d of %d requests, %d answers marked stale", asked, asked, stale)
	must.Eq(t, asked, stale)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	got, err := r.get(ctx, leader, "before", core.ConsistencyStale)
	cancel()
	must.NoError(t, err)
	must.Eq(t, value, got)

	each(false)
	healed := time.Now()
	r.mustBe(leader, "before", value)
	promised(t, "the minority serves again after", time.Since(healed), 5*time.Second)
	w.end()
	c.calm(r)
	promised(t, "all registries are equal after", c.converged(), 5*time.Second)
	r.linear()
}

func TestFaultC26HiveIsCutOff(t *testing.T) {
	slowFault(t)
	c := newLANCluster(t)
	c.start(3, 2)
	c.serve()
	r := newRegistry(c)
	hive := c.nodes[4]
	q := c.followers(c.leader())[0]
	l := newLoad(c)
	type ask struct {
		began time.Time
		took  time.Duration
		err   error
	}
	var mu sync.Mutex
	var asks []ask
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		tick := time.NewTicker(25 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
				defer cancel()
				a := ask{began: time.Now()}
				a.err = l.ask(ctx, q, false, 2)
				a.took = time.Since(a.began)
				mu.Lock()
				defer mu.Unlock()
				asks = append(asks, a)
			})
		}
	})
	sleep(2 * time.Second)
	cut := time.Now()
	must.NoError(t, c.lan.plug(hive.ip, false))
	cl := c.client(q)
	coretest.Eventually(t, patience, func() error {
		h, err := cl.Hive(t.Context(), hive.id())
		if err == nil && h.Status != core.HiveDown {
			err = fmt.Errorf("the hive is %s", h.Status)
		}
		return err
	})
	down := time.Since(cut)
	sleep(3 * time.Second)
	close(stop)
	wg.Wait()
	fmt.Println("C-26: a hive's cable is pulled")
	promised(t, "it is down in the registry after", down, 3*time.Second)
	var slow []ask
	var before, after []time.Duration
	failed, last, waited := 0, time.Duration(0), time.Duration(0)
	for _, a := range asks {
		switch {
		case a.began.Before(cut.Add(-100 * time.Millisecond)):
			before = append(before, a.took)
			continue
		case a.err != nil:
			failed++
			last = max(last, a.began.Sub(cut))
			figure("a request begun %d ms after it failed after %d ms: %v", a.began.Sub(cut).Milliseconds(), a.took.Milliseconds(), a.err)
		case a.took > time.Second:
			slow = append(slow, a)
			last = max(last, a.began.Sub(cut))
		}
		after, waited = append(after, a.took), max(waited, a.took)
	}
	figure("requests: %d before, p50 %s, p99 %s", len(before), quantile(before, 0.5), quantile(before, 0.99))
	figure("requests: %d after, p50 %s, p99 %s, %d failed, %d took over a second; the last of those began %s after", len(after), quantile(after, 0.5), quantile(after, 0.99), failed, len(slow), last)
	promised(t, "the last request that suffered began after", last, 1300*time.Millisecond)
	promised(t, "the longest waited", waited, 5*time.Second)

	must.NoError(t, c.lan.plug(hive.ip, true))
	back := time.Now()
	coretest.Eventually(t, patience, func() error {
		h, err := cl.Hive(t.Context(), hive.id())
		if err == nil && h.Status != core.HiveReady {
			err = fmt.Errorf("the hive is %s", h.Status)
		}
		return err
	})
	figure("plugged in, it is ready again after %s", time.Since(back).Round(time.Millisecond))
	r.linear()
}

func TestFaultC12DiskIsFull(t *testing.T) {
	slowFault(t)
	c := newCluster(t)
	c.disk = func(n *node) { smallDisk(t, n.dir, "96m") }
	c.start(3, 1)
	c.serve()
	r := newRegistry(c)
	leader := c.leader()
	via := c.followers(leader)[0]
	load := &workload{r: r, clients: 8, keys: 64, hot: 32, seed: seedOf(t), patience: 3 * time.Second}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	l := newLoad(c)
	l.streams(&wg, stop, 3, c.queens())
	load.run(&wg, stop)
	w := r.writer(1000, via, "full")
	w.await(t, time.Now())
	full := time.Now()
	free, err := fill(leader.dir)
	must.NoError(t, err)
	var moved time.Duration
	coretest.Eventually(t, patience, func() error {
		now := c.leaderNow(l.http)
		if now == nil || now == leader {
			return errors.New("the leader with the full disk still leads")
		}
		moved = time.Since(full)
		return nil
	})
	w.await(t, time.Now())
	fmt.Println("C-12: the leader's disk is full")
	gap := w.gap(full)
	promised(t, "another queen leads after", moved, 5*time.Second+patienceOfLoad)
	promised(t, "write gap", gap, 5*time.Second)
	must.True(t, leader.running(), must.Sprint(leader.log))
	must.NoError(t, l.ask(t.Context(), leader, false, 2)) // its replica still routes
	must.NoError(t, free())
	freed := time.Now()
	r.mustBe(leader, "none", "")
	figure("with space again it serves consistent reads after %s", time.Since(freed).Round(time.Millisecond))
	w.end()
	close(stop)
	wg.Wait()
	figure("registries are equal after %s", c.converged().Round(time.Millisecond))
	for q, why := range l.broken {
		t.Errorf("streams through %s broke: %v", q.name, why)
	}
	r.linear()
}

// patienceOfLoad is how long the load may take until it needs space that the disk lacks.
const patienceOfLoad = 10 * time.Second

func TestFaultC20DiskStands(t *testing.T) {
	slowFault(t)
	c := newCluster(t)
	disks := map[*node]*disk{}
	c.disk = func(n *node) {
		if n.queen {
			disks[n] = frozenDisk(t, n.dir)
		}
	}
	c.start(3, 1)
	c.serve()
	r := newRegistry(c)
	fmt.Println("C-20: the leader's disk is slow, or stands still")
	l := newLoad(c)
	for _, kind := range []string{"stands still", "takes 200 ms"} {
		leader := c.leader()
		via := c.followers(leader)[0]
		w := r.writer(1000, via, "slow")
		w.await(t, time.Now())
		var wg sync.WaitGroup
		stop := make(chan struct{})
		stopped := time.Now()
		must.NoError(t, disks[leader].freeze(true))
		if kind == "takes 200 ms" {
			wg.Go(func() {
				for {
					sleep(200 * time.Millisecond)
					_ = disks[leader].freeze(false) // a waiting process writes; freezing waits for it, and later writes block again
					select {
					case <-stop:
						return
					default:
					}
					_ = disks[leader].freeze(true)
				}
			})
		}
		var latency []time.Duration
		var moved time.Duration
		for moved == 0 && time.Since(stopped) < patience {
			began := time.Now()
			must.NoError(t, l.ask(t.Context(), leader, false, 2))
			latency = append(latency, time.Since(began))
			if now := c.leaderNow(l.http); now != nil && now != leader {
				moved = time.Since(stopped)
			}
		}
		close(stop)
		w.await(t, time.Now())
		gap := w.gap(stopped)
		wg.Wait()
		if kind == "stands still" {
			must.NoError(t, disks[leader].freeze(false))
		}
		must.Positive(t, moved)
		promised(t, "its disk "+kind+": another queen leads after", moved, 10*time.Second)
		// A slow disk still accepts writes: the queen steps down for slowness, not for a blocked
		// disk.
		must.Eq(t, kind == "takes 200 ms", strings.Contains(leader.log.String(), "half of the writes take"), must.Sprint(leader.log))
		figure("write gap %s; requests through it: p50 %s, p99 %s", gap.Round(time.Millisecond), quantile(latency, 0.5), quantile(latency, 0.99))
		w.end()
		c.calm(r)
	}
	figure("registries are equal after %s", c.converged().Round(time.Millisecond))
	r.linear()
}
