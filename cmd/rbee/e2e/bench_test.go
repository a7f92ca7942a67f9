package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pluginhost"
)

// timing is one streamed request, as measured by its client.
type timing struct {
	first  time.Duration // until the first event with content
	total  time.Duration
	tokens int
}

// ask streams tokens from a worker, over whatever the client dials, and times it.
func ask(ctx context.Context, c *http.Client, base string, tokens int) (timing, error) {
	body := fmt.Sprintf(`{"model":"rbee-tiny","stream":true,"ignore_eos":true,"temperature":0,"max_tokens":%d,"messages":[{"role":"user","content":"What is a queen?"}]}`, tokens)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return timing{}, err
	}
	start := time.Now()
	resp, err := c.Do(req)
	if err != nil {
		return timing{}, err
	}
	defer resp.Body.Close()
	var t timing
	r := bufio.NewReader(resp.Body)
	for {
		line, err := r.ReadString('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return t, err
		}
		if strings.HasPrefix(line, "data: {") && strings.Contains(line, `"content":"`) && !strings.Contains(line, `"content":""`) {
			t.tokens++
			if t.first == 0 {
				t.first = time.Since(start)
			}
		}
	}
	t.total = time.Since(start)
	if t.tokens < tokens*9/10 { // some tokens are half a character and arrive with the next
		return t, fmt.Errorf("%d events for %d tokens", t.tokens, tokens)
	}
	return t, nil
}

func median[T int64 | float64 | time.Duration](list []T) T {
	slices.Sort(list)
	return list[len(list)/2]
}

// echoSocket is the variable by which bareHop makes this test binary echo on a socket instead of
// running tests.
const echoSocket = "RBEE_E2E_ECHO_SOCKET"

// echo echoes what it receives on the first connection to a socket.
func echo(socket string) error {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = io.Copy(struct{ io.Writer }{c}, c) // a read and a write each time, as a relay does
	return err
}

// bareHop measures the cost of one more Go process on the path on this machine: the round trip of a
// byte through one that echoes it, after as long a pause as a first token takes. On a virtual
// machine, most of it is waking a sleeping processor.
func bareHop(b *testing.B) time.Duration {
	b.Helper()
	socket := filepath.Join(shortDir(b), "echo")
	server := exec.Command(os.Args[0])
	server.Env = append(os.Environ(), echoSocket+"="+socket)
	must.NoError(b, server.Start())
	var c net.Conn
	coretest.Eventually(b, patience, func() (err error) {
		c, err = net.Dial("unix", socket)
		return err
	})
	var took []time.Duration
	for range 400 {
		time.Sleep(4 * time.Millisecond)
		start := time.Now()
		_, err := c.Write([]byte{'x'})
		must.NoError(b, err)
		_, err = c.Read(make([]byte, 1))
		must.NoError(b, err)
		took = append(took, time.Since(start))
	}
	must.NoError(b, c.Close())
	must.NoError(b, server.Wait())
	return median(took)
}

// proxy is a running testdata/reverseproxy.
type proxy struct {
	base string // URL
	pid  int
}

// reverseProxy starts testdata/reverseproxy in front of a worker's socket.
func reverseProxy(b *testing.B, worker pluginhost.Attachment, mode ...string) proxy {
	b.Helper()
	dir := shortDir(b)
	exe := filepath.Join(dir, "reverseproxy")
	out, err := exec.Command("go", "build", "-trimpath", "-o", exe, "./testdata/reverseproxy").CombinedOutput()
	must.NoError(b, err, must.Sprintf("%s", out))
	cmd := exec.Command(exe, append([]string{worker.DataSocket, worker.DataOpening}, mode...)...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe() // it ends with its input
	must.NoError(b, err)
	stdout, err := cmd.StdoutPipe()
	must.NoError(b, err)
	must.NoError(b, cmd.Start())
	b.Cleanup(func() {
		must.NoError(b, stdin.Close())
		must.NoError(b, cmd.Wait())
	})
	addr, err := bufio.NewReader(stdout).ReadString('\n')
	must.NoError(b, err)
	return proxy{"http://" + strings.TrimSpace(addr), cmd.Process.Pid}
}

// BenchmarkRelay compares a stream through the queen with the same stream from the worker's own
// socket, by turns, on the same worker. Goals: ratio of tokens/s at least 0.99, added time to the
// first token at most 200 µs (medians). Two others in the same rounds, each in a separate process,
// show the machine's share: a bare net/http/httputil.ReverseProxy (peer_), and one that copies
// bytes between the two connections without HTTP (copy_); and, on an idle machine, a process that
// echoes a byte (bare_hop_).
func BenchmarkRelay(b *testing.B) {
	a := startAgent(b, agentOptions{})
	a.spawn("--threads", "1")
	worker := a.handles()[0].Attachment
	arms := []struct {
		client *http.Client
		base   string
	}{
		{&http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialWorker(ctx, worker) }}}, "http://worker"},
		{&http.Client{Transport: &http.Transport{}}, "http://" + a.addr},
		{&http.Client{Transport: &http.Transport{}}, reverseProxy(b, worker).base},
		{&http.Client{Transport: &http.Transport{}}, reverseProxy(b, worker, "copy").base},
	}
	const direct, through, peer, bare, n = 0, 1, 2, 3, 4
	orders := [][n]int{{0, 1, 2, 3}, {1, 3, 0, 2}, {2, 0, 3, 1}, {3, 2, 1, 0}} // each once in each position, none always after the same
	const tokens, rounds, short, shortRounds = 400, 40, 4, 400
	measure := func(tokens, rounds int) [n][]timing {
		var all [n][]timing
		for i := range rounds + len(orders) {
			for _, arm := range orders[i%len(orders)] {
				t, err := ask(b.Context(), arms[arm].client, arms[arm].base, tokens)
				must.NoError(b, err, must.Sprintf("asked %s", arms[arm].base))
				if i >= len(orders) { // the first ones open connections
					all[arm] = append(all[arm], t)
				}
			}
		}
		return all
	}
	for b.Loop() {
		all := measure(tokens, rounds)
		var rates [n][]float64
		var ratios [n][]float64
		for i := range all[direct] {
			for arm := range arms {
				rate := float64(all[arm][i].tokens) / all[arm][i].total.Seconds()
				rates[arm] = append(rates[arm], rate)
				ratios[arm] = append(ratios[arm], rate/rates[direct][i])
			}
		}
		b.ReportMetric(median(rates[through]), "tokens/s")
		b.ReportMetric(median(ratios[through]), "ratio_to_direct")
		b.ReportMetric(median(ratios[peer]), "peer_ratio_to_direct")
		b.ReportMetric(median(ratios[bare]), "copy_ratio_to_direct")
		all = measure(short, shortRounds)
		var first, added [n][]time.Duration
		for i := range all[direct] {
			for arm := range arms {
				first[arm] = append(first[arm], all[arm][i].first)
				added[arm] = append(added[arm], all[arm][i].first-all[direct][i].first)
			}
		}
		b.ReportMetric(float64(median(first[direct]).Microseconds()), "direct_first_token_µs")
		b.ReportMetric(float64(median(first[through]).Microseconds()), "first_token_µs")
		b.ReportMetric(float64(median(added[through]).Microseconds()), "added_first_token_µs")
		b.ReportMetric(float64(median(added[peer]).Microseconds()), "peer_added_first_token_µs")
		b.ReportMetric(float64(median(added[bare]).Microseconds()), "copy_added_first_token_µs")
		b.ReportMetric(float64(bareHop(b).Microseconds()), "bare_hop_µs")
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkAgentStart measures from exec to ready, and the resident memory of the idle agent.
// Goals: 300 ms, 60 MiB.
func BenchmarkAgentStart(b *testing.B) {
	for b.Loop() {
		var took []time.Duration
		var rss []int64
		for range 10 {
			dir := shortDir(b)
			record := filepath.Join(dir, "agent.json")
			cmd := exec.Command(filepath.Join(binDir(b), "rbee"), "agent", "-dev", "-data-dir", dir, "-store-dir", sharedStore(b), "-http-port", "0")
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
			start := time.Now()
			must.NoError(b, cmd.Start())
			for {
				if _, err := os.Stat(record); err == nil { // written once it can serve
					break
				}
				must.Less(b, patience, time.Since(start))
				time.Sleep(time.Millisecond)
			}
			took = append(took, time.Since(start))
			time.Sleep(time.Second) // idle
			rss = append(rss, residentBytes(b, cmd.Process.Pid))
			must.NoError(b, cmd.Process.Signal(syscall.SIGTERM))
			must.NoError(b, cmd.Wait())
		}
		b.ReportMetric(float64(median(took).Milliseconds()), "start_ms")
		b.ReportMetric(float64(slices.Max(took).Milliseconds()), "start_max_ms")
		b.ReportMetric(float64(median(rss))/(1<<20), "idle_MiB")
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkCancel measures from ^C in a running `rbee infer` until its worker is idle. Goal: 100
// ms.
func BenchmarkCancel(b *testing.B) {
	a := startAgent(b, agentOptions{config: configured(b)})
	spawned := a.spawnModel("file:" + slowModel(b))
	active := workerStatus(b, a)
	for b.Loop() {
		var took []time.Duration
		for range 20 {
			cmd := a.command(b.Context(), "infer", "--model", spawned.Worker.Model, "--prompt", "Tell me a story.")
			must.NoError(b, cmd.Start())
			for active(b) != 1 {
				time.Sleep(time.Millisecond)
			}
			start := time.Now()
			must.NoError(b, cmd.Process.Signal(syscall.SIGINT))
			for active(b) != 0 {
				must.Less(b, patience, time.Since(start))
			}
			took = append(took, time.Since(start))
			_ = cmd.Wait()
		}
		b.ReportMetric(float64(median(took).Microseconds())/1000, "median_ms")
		b.ReportMetric(float64(slices.Max(took).Microseconds())/1000, "max_ms")
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkSize reports the size of the stripped program. Goal: 30 MB, missed by 0.3 MB since
// deployments; TestSize keeps it from growing unnoticed.
func BenchmarkSize(b *testing.B) {
	for b.Loop() {
		b.ReportMetric(float64(programSize(b))/1e6, "MB")
	}
	b.ReportMetric(0, "ns/op")
}

func programSize(t testing.TB) int64 {
	t.Helper()
	info, err := os.Stat(filepath.Join(binDir(t), "rbee"))
	must.NoError(t, err)
	return info.Size()
}

// The stripped program has at most 31 MB. It grows by several MB at once when something in it may
// call methods by name, as text/template does: then the linker keeps all methods of all types. `go
// build -ldflags=-dumpdep ./cmd/rbee 2>&1 | grep ReflectMethod` shows the cause.
func TestSize(t *testing.T) {
	t.Parallel()
	must.LessEq(t, 31_000_000, programSize(t))
}

// residentBytes returns the resident memory of a process on Linux; elsewhere the benchmark reports
// 0.
func residentBytes(t testing.TB, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	must.NoError(t, err)
	return pages * int64(os.Getpagesize())
}
