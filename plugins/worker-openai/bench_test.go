package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
	"github.com/rbee-project/rbee/plugins/sdk/worker/forward"
)

// relayEnv makes the test's executable serve a worker's handler for the server with this socket, so
// that its CPU time is separate from the client's.
const relayEnv = "RBEE_TEST_RELAY"

func playRelay(socket string) {
	u := &url.URL{Scheme: "http", Host: "server"}
	f := forward.New(forward.Options{Targets: []forward.Target{{URL: u, Socket: socket}}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		os.Exit(9)
	}
	fmt.Println(l.Addr())
	_ = http.Serve(l, worker.NewGate(4).Handler(facts{}.handler(f))) //nolint:gosec // ends with the test
}

// ticks returns the CPU time of a process, in ticks of 10 ms.
func ticks(b *testing.B, pid int) int {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must.NoError(b, err)
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	user, err := strconv.Atoi(f[11])
	must.NoError(b, err)
	system, err := strconv.Atoi(f[12])
	must.NoError(b, err)
	return user + system
}

// BenchmarkOverhead streams answers of a real llama-server with a tiny model through the worker and
// reports the CPU time that the worker adds to the server's own, per event.
func BenchmarkOverhead(b *testing.B) {
	program := llamaServer(b)
	r := startLlama(b, llamaConfig(b, fields{"program": program}))
	socket := r.current().dir + "/s.sock"
	relay := exec.CommandContext(b.Context(), os.Args[0])
	relay.Env = append(os.Environ(), relayEnv+"="+socket)
	out, err := relay.StdoutPipe()
	must.NoError(b, err)
	must.NoError(b, relay.Start())
	b.Cleanup(func() {
		_ = relay.Process.Kill()
		_ = relay.Wait()
	})
	var address string
	_, err = fmt.Fscanln(out, &address)
	must.NoError(b, err)
	server := r.current().server.PID()
	direct := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	stream := func(c *http.Client, base string) int {
		resp, err := c.Post(base+"/v1/completions", "application/json", strings.NewReader(`{"prompt":"Once","max_tokens":450,"ignore_eos":true,"stream":true}`))
		must.NoError(b, err)
		defer resp.Body.Close()
		events := openai.NewEventReader(resp.Body)
		for n := 0; ; n++ {
			if e, err := events.Next(); err != nil || e.IsDone() {
				must.True(b, err == nil || errors.Is(err, io.EOF))
				return n
			}
		}
	}
	through := &http.Client{}
	stream(direct, "http://server")
	stream(through, "http://"+address)
	alone, proxied := 0, 0
	aloneEvents, proxiedEvents := 0, 0
	own := ticks(b, relay.Process.Pid)
	for b.Loop() {
		at := ticks(b, server)
		aloneEvents += stream(direct, "http://server")
		alone += ticks(b, server) - at
		at = ticks(b, server)
		proxiedEvents += stream(through, "http://"+address)
		proxied += ticks(b, server) - at
	}
	relayed := ticks(b, relay.Process.Pid) - own
	per := func(ticks, events int) float64 { return float64(ticks) * 1e4 / float64(max(events, 1)) }
	b.ReportMetric(per(alone, aloneEvents), "server-µs/event")
	b.ReportMetric(per(proxied, proxiedEvents), "server-behind-µs/event")
	b.ReportMetric(per(relayed, proxiedEvents), "worker-µs/event")
	b.ReportMetric((per(proxied, proxiedEvents)+per(relayed, proxiedEvents))/max(per(alone, aloneEvents), 0.001), "times-server")
}
