package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// engineArm is a server that BenchmarkEngine measures.
type engineArm struct {
	name, base, model string
	client            *http.Client
}

// overSocket returns a client whose requests all go to a unix socket. Each uses a new connection,
// as llama-server closes one after a stream without announcing it.
func overSocket(dial func(context.Context) (net.Conn, error)) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dial(ctx)
	}}}
}

// engineAnswer is one streamed answer, as measured by its client.
type engineAnswer struct {
	text             string
	first            time.Duration
	gaps             []time.Duration // between events with text
	prompt, tokens   int
	cached           int
	started, stopped time.Time
}

// chat streams an answer of exactly so many tokens.
func (e engineArm) chat(ctx context.Context, tokens int, messages ...map[string]string) (engineAnswer, error) {
	return e.stream(ctx, "/v1/chat/completions", map[string]any{"messages": messages}, tokens)
}

// post sends a request; the caller closes the response.
func (e engineArm) post(ctx context.Context, path string, fields map[string]any) (*http.Response, error) {
	body, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.base+path, strings.NewReader(string(body)))
	if err != nil {
		return nil, err
	}
	return e.client.Do(req)
}

// stream streams an answer of exactly so many tokens to a request with these fields.
func (e engineArm) stream(ctx context.Context, path string, own map[string]any, tokens int) (engineAnswer, error) {
	fields := map[string]any{
		"model": e.model, "stream": true, "stream_options": map[string]bool{"include_usage": true},
		"ignore_eos": true, "temperature": 0, "max_tokens": tokens,
	}
	maps.Copy(fields, own)
	a := engineAnswer{started: time.Now()}
	resp, err := e.post(ctx, path, fields)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	last, other := a.started, "" // other: the last line that is not an event, such as an error
	for r := bufio.NewReader(resp.Body); ; {
		line, err := r.ReadString('\n')
		if errors.Is(err, io.EOF) {
			other += line
			break
		}
		if err != nil {
			return a, err
		}
		data, ok := strings.CutPrefix(line, "data: {")
		if !ok {
			other += line
			continue
		}
		now := time.Now()
		var chunk struct {
			Choices []struct {
				Text  string `json:"text"`
				Delta struct {
					Content string `json:"content"`
				} `json:"delta"`
			} `json:"choices"`
			Usage *struct {
				Prompt  int `json:"prompt_tokens"`
				Tokens  int `json:"completion_tokens"`
				Details struct {
					Cached int `json:"cached_tokens"`
				} `json:"prompt_tokens_details"`
			} `json:"usage"`
		}
		if err := json.Unmarshal([]byte("{"+data), &chunk); err != nil {
			return a, err
		}
		if u := chunk.Usage; u != nil {
			a.prompt, a.tokens, a.cached = u.Prompt, u.Tokens, u.Details.Cached
		}
		if len(chunk.Choices) == 0 || chunk.Choices[0].Text+chunk.Choices[0].Delta.Content == "" {
			continue
		}
		a.text += chunk.Choices[0].Text + chunk.Choices[0].Delta.Content
		if a.first == 0 {
			a.first = now.Sub(a.started)
		} else {
			a.gaps = append(a.gaps, now.Sub(last))
		}
		last = now
	}
	a.stopped = time.Now()
	if a.tokens != tokens || a.first == 0 {
		return a, fmt.Errorf("%s: %d tokens instead of %d (%s): %s", e.name, a.tokens, tokens, resp.Status, strings.TrimSpace(other))
	}
	return a, nil
}

// words returns a text of n words with a unique beginning.
func words(seed, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%c%d ", 'a'+(seed+i*i)%26, (seed*31+i*17)%97)
	}
	return b.String()
}

func user(text string) map[string]string { return map[string]string{"role": "user", "content": text} }

func percentile(list []time.Duration, p float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[min(len(list)-1, int(p*float64(len(list))))]
}

// engineModel returns the path of the model to measure with.
func engineModel(b *testing.B) string {
	b.Helper()
	if path := os.Getenv("RBEE_BENCH_MODEL"); path != "" {
		return path
	}
	path := filepath.Join(b.TempDir(), "synthetic-135m.gguf")
	out, err := exec.Command("go", "run", "../../../core/coretest/ggufgen", "-preset", "135m", "-type", "q8_0", "-out", path).CombinedOutput()
	must.NoError(b, err, must.Sprintf("%s", out))
	return path
}

// engineFigures are the numbers of one arm, a value for each round.
type engineFigures map[string][]float64

func (f engineFigures) add(name string, value float64) { f[name] = append(f[name], value) }

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// measure runs one round on one server. scale 1 is the whole measurement, 2 half of it, and so on.
func (e engineArm) measure(ctx context.Context, seed, scale int, f engineFigures) error {
	const perClient = 2
	tokens := 64 / scale
	for _, width := range []int{1, 4, 8, 16} {
		var mu sync.Mutex
		var wg sync.WaitGroup
		var failed error
		var first, gaps []time.Duration
		start := time.Now()
		for i := range width {
			wg.Go(func() {
				for j := range perClient {
					a, err := e.chat(ctx, tokens, user(words(seed+width*1000+i*10+j, 20)))
					mu.Lock()
					first, gaps, failed = append(first, a.first), append(gaps, a.gaps...), errors.Join(failed, err)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if failed != nil {
			return failed
		}
		f.add(fmt.Sprintf("tokens/s at %d", width), float64(width*perClient*tokens)/time.Since(start).Seconds())
		f.add(fmt.Sprintf("first token p50 at %d, ms", width), ms(percentile(first, 0.5)))
		f.add(fmt.Sprintf("between tokens p99 at %d, ms", width), ms(percentile(gaps, 0.99)))
	}

	// A second turn follows a long first one.
	question := user(words(seed+500, 220/scale))
	a, err := e.chat(ctx, 16, question)
	if err != nil {
		return err
	}
	f.add("first turn's prompt tokens/s", float64(a.prompt)/a.first.Seconds())
	b, err := e.chat(ctx, 16, question, map[string]string{"role": "assistant", "content": a.text}, user(words(seed+501, 10)))
	if err != nil {
		return err
	}
	f.add("first token of a second turn, ms", ms(b.first))
	f.add("its tokens that were not cached", float64(b.prompt-b.cached))

	// JSON, longer than the answer may be. It is not a conversation: llama-server makes its grammar
	// read what the template puts before an answer, and refuses if the vocabulary adds a space
	// there.
	list := map[string]any{"type": "array", "minItems": 20, "items": map[string]any{"type": "object", "properties": map[string]any{"name": map[string]any{"type": "string", "maxLength": 8}, "age": map[string]any{"type": "integer"}}, "required": []string{"name", "age"}, "additionalProperties": false}}
	start := time.Now()
	if a, err = e.stream(ctx, "/v1/completions", map[string]any{"prompt": words(seed+510, 20), "json_schema": list}, tokens); err != nil {
		return err
	}
	f.add("JSON tokens/s", float64(tokens-1)/(time.Since(start)-a.first).Seconds())

	// Long prompts are admitted while four streams run.
	var streams [4]engineAnswer
	var wg sync.WaitGroup
	errs := make([]error, len(streams)+1)
	for i := range streams {
		wg.Go(func() { streams[i], errs[i] = e.chat(ctx, 160/scale, user(words(seed+600+i, 20))) })
	}
	var long []time.Duration
	for i := range 2 {
		a, err := e.chat(ctx, 1, user(words(seed+700+i, 350/scale)))
		errs[len(streams)] = errors.Join(errs[len(streams)], err)
		long = append(long, a.first)
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	var gaps []time.Duration
	for _, s := range streams {
		gaps = append(gaps, s.gaps...)
	}
	f.add("between tokens p99 beside long prompts, ms", ms(percentile(gaps, 0.99)))
	f.add("longest pause beside long prompts, ms", ms(slices.Max(gaps)))
	f.add("first token of a long prompt beside streams, ms", ms(median(long)))
	return nil
}

// BenchmarkEngine compares a worker's data socket, the same worker through the queen, and
// llama-server (RBEE_BENCH_LLAMA_SERVER is its path; without it there is no peer) on the same model
// (RBEE_BENCH_MODEL, or a synthetic one of 135 M parameters) with one thread and 16 slots each, by
// turns for RBEE_BENCH_ROUNDS (7), with texts shortened by the factor RBEE_BENCH_SCALE (1).
// Embeddings use a separate encoder. It prints a table of medians, with the quartiles and the
// median of the rounds' ratios to the peer. The queen's memory is that of the whole agent.
func BenchmarkEngine(b *testing.B) {
	const slots, contextTokens = 16, 2048
	number := func(name string, value int) int {
		if text := os.Getenv(name); text != "" {
			n, err := strconv.Atoi(text)
			must.NoError(b, err)
			must.Positive(b, n)
			return n
		}
		return value
	}
	rounds, scale := number("RBEE_BENCH_ROUNDS", 7), number("RBEE_BENCH_SCALE", 1)
	shape := engineShape{engineModel(b), slots, contextTokens}
	reader := engineShape{readerModel(b), 16, 512}
	a := startAgent(b, agentOptions{config: oneMachine + fmt.Sprintf("catalog \"file\" {\n  config {\n    paths = [%q, %q]\n  }\n}\n", filepath.Dir(shape.model), filepath.Dir(reader.model)), store: ownStore(b)})
	worker, socket, _ := shape.spawn(b, a)
	readerWorker, readerSocket, _ := reader.spawn(b, a)
	queen := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	arms := []engineArm{
		{"data socket", "http://worker", worker.Worker.Model, socket},
		{"through the queen", "http://" + a.addr, worker.Worker.Model, queen},
	}
	readers := []engineArm{
		{"data socket", "http://worker", readerWorker.Worker.Model, readerSocket},
		{"through the queen", "http://" + a.addr, readerWorker.Worker.Model, queen},
	}
	pids := []int{worker.PID, a.cmd.Process.Pid}
	exe := os.Getenv("RBEE_BENCH_LLAMA_SERVER")
	if exe != "" {
		peer := shape.peer(b, exe)
		arms, pids = append(arms, peer.engineArm), append(pids, peer.pid)
		readers = append(readers, reader.peer(b, exe, "--embeddings", "--pooling", "mean", "-b", "2048", "-ub", "2048").engineArm)
	}
	figures := make([]engineFigures, len(arms))
	for i := range figures {
		figures[i] = engineFigures{}
	}
	for b.Loop() {
		for round := range rounds {
			for i := range arms {
				arm := (i + round) % len(arms) // none always after the same
				began := time.Now()
				seed := round*100000 + arm*10000
				must.NoError(b, arms[arm].measure(b.Context(), seed, scale, figures[arm]))
				must.NoError(b, readers[arm].read(b.Context(), seed, scale, figures[arm]))
				shape.load(b, a, exe, arm, figures[arm])
				figures[arm].add("resident after a round, MiB", residentMiB(b, pids[arm]))
				fmt.Printf("round %d, %s: %s\n", round+1, arms[arm].name, time.Since(began).Round(time.Second))
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	all := map[string]bool{}
	for _, f := range figures {
		for name := range f {
			all[name] = true
		}
	}
	names := slices.Sorted(maps.Keys(all))
	var table strings.Builder
	for _, name := range names {
		fmt.Fprintf(&table, "%-48s", name)
		for arm := range arms {
			values := slices.Sorted(slices.Values(figures[arm][name]))
			n := len(values)
			if n == 0 {
				fmt.Fprintf(&table, " | %s –", arms[arm].name)
				continue
			}
			fmt.Fprintf(&table, " | %s %.1f (%.1f–%.1f)", arms[arm].name, values[n/2], values[n/4], values[n*3/4])
			if len(arms) == 3 && arm < 2 && len(figures[2][name]) > 0 {
				var ratios []float64
				for i, v := range figures[arm][name] {
					ratios = append(ratios, v/figures[2][name][i])
				}
				fmt.Fprintf(&table, " ×%.2f", median(ratios))
			}
		}
		table.WriteByte('\n')
	}
	// Do not print to the benchmark's log, which would be truncated.
	fmt.Printf("one thread, %d slots of %d tokens, %d rounds at scale %d; medians (quartiles), × median ratio to llama-server\n%s", slots, contextTokens, rounds, scale, table.String())
}
