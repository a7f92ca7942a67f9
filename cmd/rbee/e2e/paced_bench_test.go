package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest"
)

// BenchmarkPacedStreams compares the cost of a stream event in the queen and in a bare
// net/http/httputil.ReverseProxy, in processor time of each process, with 100 concurrent streams
// whose events are 30 ms apart: too slow to contend with one another. They take turns on the same
// worker. Goal: ratio at most 1. A queen is an agent with other duties, which idle_ counts.
func BenchmarkPacedStreams(b *testing.B) {
	const streams, tokens, rounds, pace = 100, 200, 4, 30 * time.Millisecond
	plugins := b.TempDir()
	must.NoError(b, coretest.Build(filepath.Join(plugins, "rbee-worker-fake"), "../../../plugins/sdk/sdktest/fakeworker"))
	builtin, err := os.ReadFile(filepath.Join(binDir(b), "plugins", "rbee-catalog-builtin"))
	must.NoError(b, err)
	must.NoError(b, os.WriteFile(filepath.Join(plugins, "rbee-catalog-builtin"), builtin, 0o700))
	a := startAgent(b, agentOptions{
		config: oneMachine + fmt.Sprintf("plugin_dir = %q\nworker \"fake\" {\n  config {\n    token_delay = %q\n    tokens = %d\n  }\n}\n", plugins, pace, tokens),
		store:  ownStore(b),
	})
	a.spawn("--type", "fake", "--slots", strconv.Itoa(streams))
	peer := reverseProxy(b, a.handles()[0].Attachment)
	arms := []struct {
		base string
		pid  int
	}{{"http://" + a.addr, a.cmd.Process.Pid}, {peer.base, peer.pid}}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: streams}}
	b.Cleanup(client.CloseIdleConnections)
	round := func(arm int) (perEvent time.Duration) {
		before := processorTime(b, arms[arm].pid)
		events := make(chan int, streams)
		var wg sync.WaitGroup
		for range streams {
			wg.Go(func() {
				t, err := ask(context.Background(), client, arms[arm].base, tokens)
				if err != nil {
					b.Error(err)
				}
				events <- t.tokens
			})
		}
		wg.Wait()
		used, all := processorTime(b, arms[arm].pid)-before, 0
		for range streams {
			all += <-events
		}
		return used / time.Duration(max(all, 1))
	}
	// This measures an agent's other duties, for as long as a round of streams takes.
	before := processorTime(b, a.cmd.Process.Pid)
	time.Sleep(2 * tokens * pace)
	idle := (processorTime(b, a.cmd.Process.Pid) - before) / 2 / (streams * tokens)
	for b.Loop() {
		var cost [2][]time.Duration
		for i := range rounds + 1 {
			for k := range arms {
				arm := (i + k) % len(arms)
				if d := round(arm); i > 0 { // the first ones open connections
					cost[arm] = append(cost[arm], d)
				}
			}
		}
		queen, proxy := median(cost[0]), median(cost[1])
		b.ReportMetric(float64(queen.Nanoseconds())/1000, "µs/event")
		b.ReportMetric(float64(proxy.Nanoseconds())/1000, "peer_µs/event")
		b.ReportMetric(float64(idle.Nanoseconds())/1000, "idle_µs/event")
		b.ReportMetric(float64(queen)/float64(proxy), "ratio_to_peer")
		b.ReportMetric(float64(queen-idle)/float64(proxy), "ratio_without_idle")
	}
	b.ReportMetric(0, "ns/op")
}

// processorTime returns the processor time of a process so far, in steps of 10 ms.
func processorTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must.NoError(b, err)
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	var ticks int64
	for _, field := range fields[11:13] { // utime and stime: see proc_pid_stat(5)
		n, err := strconv.ParseInt(string(field), 10, 64)
		must.NoError(b, err)
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100
}
