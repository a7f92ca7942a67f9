package llamacpp

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"
	"github.com/shirou/gopsutil/v4/process"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/native"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/sampler"
	"github.com/rbee-project/rbee/plugins/llamacpp/llamatest"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// Settings of TestSoak: the requests of a round (default 200), the seconds for which to repeat
// rounds (default: one round), and the random seed.
const (
	soakSeedEnv     = "RBEE_SOAK_SEED"
	soakRequestsEnv = "RBEE_SOAK_REQUESTS"
	soakSecondsEnv  = "RBEE_SOAK_SECONDS"
)

func soakNumber(t testing.TB, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	must.NoError(t, err)
	return n
}

// soakWide is the number of concurrent requests.
const soakWide = 16

// soakRequest is a random request with its answers.
type soakRequest struct {
	fields   map[string]any
	prompt   []token
	limit    int
	sampling sampler.Params
	stops    []string
	gone     bool // the client disconnects after the first part of the answer

	texts    []string
	finishes []string
}

// newSoakRequest draws a request.
func newSoakRequest(t testing.TB, w *testWorker, rnd *rand.Rand) *soakRequest {
	t.Helper()
	questions := recordQuestions()
	var messages []openai.Message
	for range rnd.IntN(4) {
		messages = append(messages,
			openai.Message{Role: "user", Content: openai.TextContent(questions[rnd.IntN(4)])},
			openai.Message{Role: "assistant", Content: openai.TextContent(questions[rnd.IntN(3)])})
	}
	messages = append(messages, openai.Message{Role: "user", Content: openai.TextContent(questions[rnd.IntN(len(questions))])})
	r := &soakRequest{limit: 1 + rnd.IntN(24), gone: rnd.IntN(6) == 0}
	r.fields = map[string]any{"messages": messages, "max_tokens": r.limit, "temperature": 0, "stream": r.gone}
	if rnd.IntN(2) == 0 {
		r.fields["temperature"], r.fields["seed"] = 0.2+rnd.Float64()*0.6, rnd.IntN(1000)
		if rnd.IntN(3) == 0 {
			r.fields["frequency_penalty"] = rnd.Float64() / 2
		}
	}
	if rnd.IntN(4) == 0 {
		r.stops = []string{[]string{".", "e s", " is", "\n"}[rnd.IntN(4)]}
		r.fields["stop"] = r.stops
	}
	if !r.gone && rnd.IntN(6) == 0 {
		r.fields["n"] = 2 + rnd.IntN(2)
	}
	body, err := json.Marshal(r.fields)
	must.NoError(t, err)
	req, err := openai.DecodeChat(body)
	must.NoError(t, err)
	m := w.served.model
	r.prompt, _, err = m.chatPrompt(t.Context(), req, 1024, time.Time{})
	must.NoError(t, err)
	r.sampling, err = m.choose(&req.Sampling)
	must.NoError(t, err)
	return r
}

// send sends the request and stores its answers.
func (r *soakRequest) send(t testing.TB, w *testWorker) {
	t.Helper()
	body, err := json.Marshal(r.fields)
	must.NoError(t, err)
	if r.gone {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w.stream(ctx, t, string(body), func(openai.ChatChunk) { cancel() })
		return
	}
	var out openai.ChatResponse
	w.severalWithin(t.Context(), t, "/v1/chat/completions", string(body), &out) // a starved machine may take hours
	for _, c := range out.Choices {
		r.texts, r.finishes = append(r.texts, *c.Message.Content), append(r.finishes, c.FinishReason)
	}
}

// check compares each answer with the plain loop, using its own sampler with the request's seed.
// When they differ and logits may be off, the answer must equal that of an otherwise idle worker.
func (r *soakRequest) check(t testing.TB, m *model, loop *llamatest.Loop, margin float32, alone *testWorker) error {
	t.Helper()
	for i, text := range r.texts {
		s := soakSearch{request: r, t: t, loop: loop, margin: margin, model: m, text: text, params: r.sampling}
		s.params.Choice = uint32(i)
		if s.from(nil, "") {
			if s.ties > 0 {
				t.Logf("%d near ties in %q", s.ties, text)
			}
			continue
		}
		if margin == 0 {
			return fmt.Errorf("answer %d to %v is %q (%s): the plain loop goes another way after %q", i, r.fields, text, r.finishes[i], s.far)
		}
		again := &soakRequest{fields: r.fields}
		again.send(t, alone)
		if again.texts[i] != text {
			return fmt.Errorf("answer %d to %v is %q (%s): alone it is %q, and the plain loop goes another way after %q", i, r.fields, text, r.finishes[i], again.texts[i], s.far)
		}
		t.Logf("as alone, and not as the plain loop: %q", text)
	}
	return nil
}

// soakSearch searches for tokens that spell an answer, each of which is the sampler's choice from
// the plain loop's logits, or nearly so: see tied.
type soakSearch struct {
	request *soakRequest
	t       testing.TB
	loop    *llamatest.Loop
	margin  float32 // maximum error of a logit
	model   *model
	text    string
	params  sampler.Params
	work    sampler.Work
	ties    int
	far     string
}

// shown returns what a client sees of a complete text, and whether a stop string ended it.
func (s *soakSearch) shown(raw string) (text string, stopped bool) {
	at := -1
	for _, stop := range s.request.stops {
		if i := strings.Index(raw, stop); i >= 0 && (at < 0 || i < at) {
			at = i
		}
	}
	if at >= 0 {
		return raw[:at], true
	}
	return strings.ToValidUTF8(raw, "\ufffd"), false
}

// begins reports whether the answer may continue from raw.
func (s *soakSearch) begins(raw string) bool {
	for n := 1; n <= min(utf8.UTFMax-1, len(raw)); n++ { // an incomplete character
		if tail := raw[len(raw)-n:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRuneInString(tail) {
				raw = raw[:len(raw)-n]
			}
			break
		}
	}
	if strings.HasPrefix(s.text, raw) {
		return true
	}
	for _, stop := range s.request.stops {
		if strings.HasPrefix(s.text+stop, raw) || strings.HasPrefix(raw, s.text+stop) {
			return true
		}
	}
	return false
}

func (s *soakSearch) from(said []token, raw string) bool {
	text, stopped := s.shown(raw)
	if stopped || len(said) == s.request.limit {
		return text == s.text
	}
	if len(raw) > len(s.far) {
		s.far = raw
	}
	logits := slices.Clone(s.loop.Logits(s.t, s.request.prompt, said))
	best := s.choose(said, logits)
	if s.goesOn(said, raw, best) {
		return true
	}
	if s.margin == 0 {
		return false
	}
	s.ties++
	for t := range token(len(logits)) {
		if t == best || !s.model.ends[t] && !s.begins(raw+s.model.pieces[t]) {
			continue
		}
		if s.tied(said, logits, t) && s.goesOn(said, raw, t) {
			return true
		}
	}
	s.ties--
	return false
}

// tied reports whether the sampler chooses t if logits are off by up to the margin: for the
// likeliest token only its own, for a draw all of them. A draw adds up probabilities in the order
// of tokens. So t's interval moves furthest when all tokens before it gain and all after it lose,
// or the other way round; values between are searched by bisection.
func (s *soakSearch) tied(said []token, logits []float32, t token) bool {
	other := slices.Clone(logits)
	other[t] += s.margin
	if s.choose(said, other) == t {
		return true
	}
	if s.params.Temperature == 0 {
		return false
	}
	low, high := -s.margin, s.margin
	for range soakHalves {
		before := (low + high) / 2
		for x := range token(len(logits)) {
			switch {
			case x < t:
				other[x] = logits[x] + before
			case x > t:
				other[x] = logits[x] - before
			}
		}
		switch chosen := s.choose(said, other); {
		case chosen == t:
			return true
		case chosen > t:
			low = before
		default:
			high = before
		}
	}
	return false
}

// soakHalves is the number of bisection steps in tied.
const soakHalves = 14

// choose returns the sampler's choice from logits.
func (s *soakSearch) choose(said []token, logits []float32) token {
	c, err := sampler.New(s.params, len(s.model.pieces), s.model.pieces)
	must.NoError(s.t, err)
	c.Prompt(s.request.prompt)
	for _, t := range said {
		c.Accept(t)
	}
	t, err := c.Choose(&s.work, logits, nil)
	must.NoError(s.t, err)
	return t
}

// goesOn reports whether the answer can be spelled with t after the tokens in said.
func (s *soakSearch) goesOn(said []token, raw string, t token) bool {
	if s.model.ends[t] {
		text, _ := s.shown(raw)
		return text == s.text
	}
	longer := raw + s.model.pieces[t]
	return s.begins(longer) && s.from(append(slices.Clip(said), t), longer)
}

// soakUse is a process's resource usage.
type soakUse struct {
	goroutines, files int
	memory            uint64
}

func soakUseNow(t testing.TB, w, alone *testWorker) soakUse {
	t.Helper()
	w.idle(t)
	w.client.CloseIdleConnections()
	alone.client.CloseIdleConnections()
	p, err := process.NewProcess(int32(os.Getpid()))
	must.NoError(t, err)
	mem, err := p.MemoryInfo()
	must.NoError(t, err)
	u := soakUse{goroutines: runtime.NumGoroutine(), memory: mem.RSS}
	if entries, err := os.ReadDir("/proc/self/fd"); err == nil { // Linux only
		u.files = len(entries)
	}
	return u
}

// soakKind is a way to read prompts.
type soakKind struct {
	loop   llamatest.Settings
	worker string // settings
}

// soakPiece is less than the 64 rows from which on flash attention has another kernel.
const soakPiece = 48

// soakKinds returns the usual settings, and settings with steps so small that most CPUs read each
// token with the same kernels: prompt_chunk bounds only steps during answers. With these nothing
// that a worker does with a sequence may move a logit, and answers are compared strictly.
func soakKinds() map[string]soakKind {
	return map[string]soakKind{
		"usual":        {},
		"small pieces": {llamatest.Settings{Piece: soakPiece}, fmt.Sprintf(`,"batch_tokens":%d`, soakPiece)},
	}
}

// TestSoak sends requests of random lengths with seeds, stops, several answers and clients that
// disconnect, 16 at once, to a worker with too few slots and too small a store for them. Each
// answer must equal the plain loop's for its prompt alone, within a margin measured with the loop
// alone. Afterwards slots, goroutines and descriptors must be released. `make soak-engine` runs for
// hours.
func TestSoak(t *testing.T) {
	kinds := soakKinds()
	requests, seconds := soakNumber(t, soakRequestsEnv, 200), soakNumber(t, soakSecondsEnv, 0)
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			must.NoError(t, native.Load(engineDir(t), hclog.NewNullLogger()))
			soak(t, kind.loop, kind.worker, max(1, requests/len(kinds)), seconds/len(kinds))
		})
	}
}

// soak runs rounds for the configured number of seconds, and at least one.
func soak(t *testing.T, settings llamatest.Settings, config string, requests, seconds int) {
	t.Helper()
	loop := llamatest.NewWith(t, tinyModel(t), settings)
	w := startWorker(t, 12, 1024, `{"prefix_store_mib":1,"queue":1000`+config+`}`)
	alone := startWorker(t, 1, 1024, `{"prefix_store_mib":0,"speculation":false`+config+`}`)
	rnd := rand.New(rand.NewPCG(14, uint64(soakNumber(t, soakSeedEnv, 14))))
	soakRound(t, w, alone, loop, rnd, 2*soakWide) // allocates what is created on first use
	alone.chat(t, question("who are you", `,"max_tokens":1`))
	first := soakUseNow(t, w, alone)
	for round, end := 0, time.Now().Add(time.Duration(seconds)*time.Second); round == 0 || time.Now().Before(end); round++ {
		answers, left := soakRound(t, w, alone, loop, rnd, requests)
		var now soakUse
		eventually(t, func() error {
			if now = soakUseNow(t, w, alone); now.goroutines > first.goroutines || now.files > first.files {
				return fmt.Errorf("%d goroutines and %d descriptors, %d and %d at first", now.goroutines, now.files, first.goroutines, first.files)
			}
			return nil
		})
		st := w.served.engine.Stats()
		must.Zero(t, st.CacheTokens)
		t.Logf("%s: %d answers, %d clients left, %d prompt tokens evaluated, %d reused, %d of %d draft tokens accepted, %d KiB of memory (%+d since the first round)",
			time.Now().Format(time.TimeOnly), answers, left, st.PromptEvaluated, st.PromptReused, st.Accepted, st.Drafted, now.memory>>10, (int64(now.memory)-int64(first.memory))>>10)
	}
}

// soakRounding returns twice the largest difference between the loop's own ways to read some of the
// prompts.
func soakRounding(t testing.TB, loop *llamatest.Loop, list []*soakRequest) float32 {
	t.Helper()
	greatest := float32(0)
	for i := 0; i < len(list); i += max(1, len(list)/soakMeasured) {
		greatest = max(greatest, loop.Rounding(t, list[i].prompt))
	}
	must.Less(t, 0.5, greatest) // a larger one is not rounding
	return 2 * greatest
}

// soakMeasured is the number of a round's prompts used to measure the margin.
const soakMeasured = 12

// soakRound sends the requests of a round and checks their answers. It returns the number of
// answers received, and of clients that disconnected.
func soakRound(t *testing.T, w, alone *testWorker, loop *llamatest.Loop, rnd *rand.Rand, requests int) (answers, left int) {
	t.Helper()
	list := make([]*soakRequest, requests)
	for i := range list {
		list[i] = newSoakRequest(t, w, rnd)
	}
	work := make(chan *soakRequest)
	var wg sync.WaitGroup
	for range soakWide {
		wg.Go(func() {
			for r := range work {
				r.send(t, w)
			}
		})
	}
	for _, r := range list {
		work <- r
	}
	close(work)
	wg.Wait()
	w.idle(t)
	slices.SortStableFunc(list, func(a, b *soakRequest) int { return slices.Compare(a.prompt, b.prompt) }) // the loop reuses common prefixes
	margin := soakRounding(t, loop, list)
	t.Logf("logits within %g", margin)
	for i, r := range list {
		must.NoError(t, r.check(t, w.served.model, loop, margin, alone), must.Sprintf("request %d", i))
		answers += len(r.texts)
		if r.gone {
			left++
		}
	}
	return answers, left
}
