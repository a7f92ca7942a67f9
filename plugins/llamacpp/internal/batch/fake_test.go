package batch

import (
	"cmp"
	"errors"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
)

// fakeVocab is the size of the fake engine's vocabulary. Token 0 ends a generation; the piece of
// token n is the n-th letter.
const fakeVocab = 26

// fakeDecoder is an engine whose logits depend on the exact tokens of the sequence, so that a
// misplaced token changes what follows. It fails the test when misused. Like the real engine, it
// defers copies to the next step.
type fakeDecoder struct {
	t      testing.TB
	length []int     // positions of each sequence
	data   [][]Token // cache contents of each sequence, also beyond its length
	copies [][2]int  // pending copies: from, to
	cells  int       // positions of all sequences together; 0: unbounded
	fail   error     // the result of Decode
	memory int       // number of last tokens that logits depend on, which makes texts repeat; 0: all
	shift  Token     // added to the tokens of a step: its adapters
	stuck  bool      // Remove refuses cuts that Floor allows
	window int       // how far back a sequence can be cut; 0: anywhere; negative: not at all

	perStep, perToken time.Duration      // duration of Decode
	before            func(step []Entry) // called at the beginning of Decode

	steps, decoded int // calls of Decode, and their tokens
	logits         []bool
	history        [][]Token // for each entry of the last step: the tokens up to it

	copied, loaded int          // calls
	states         atomic.Int64 // saved and not yet freed
	bytes          atomic.Int64 // bytes of those states
}

func newFake(t testing.TB, slots int) *fakeDecoder {
	return &fakeDecoder{t: t, length: make([]int, slots), data: make([][]Token, slots)}
}

func (f *fakeDecoder) Decode(entries []Entry) error {
	if len(entries) == 0 {
		f.t.Error("an empty step")
	}
	if f.before != nil {
		f.before(entries)
	}
	if d := f.perStep + time.Duration(len(entries))*f.perToken; d > 0 {
		time.Sleep(d) // synctest's clock
	}
	if f.fail != nil {
		return f.fail
	}
	used := 0
	for _, n := range f.length {
		used += n
	}
	if f.cells > 0 && used+len(entries) > f.cells {
		return ErrFull
	}
	for _, c := range f.copies {
		f.data[c[1]] = slices.Clone(f.data[c[0]])
	}
	f.copies, f.logits, f.history = nil, f.logits[:0], f.history[:0]
	for _, e := range entries {
		if e.Pos != f.length[e.Seq] {
			f.t.Errorf("sequence %d has %d tokens and goes on at %d", e.Seq, f.length[e.Seq], e.Pos)
		}
		f.data[e.Seq] = append(f.data[e.Seq][:e.Pos], e.Token+f.shift)
		f.length[e.Seq]++
		f.logits = append(f.logits, e.Logits)
		f.history = append(f.history, slices.Clone(f.data[e.Seq]))
	}
	f.steps++
	f.decoded += len(entries)
	return nil
}

func (f *fakeDecoder) Logits(entry int) []float32 {
	if !f.logits[entry] {
		f.t.Errorf("logits of entry %d, which asked for none", entry)
	}
	history := f.history[entry]
	if f.memory > 0 {
		history = history[max(0, len(history)-f.memory):]
	}
	return fakeLogits(history)
}

func (f *fakeDecoder) Floor(seq int) int {
	switch {
	case f.window == 0:
		return 0
	case f.window < 0:
		return f.length[seq]
	default:
		return max(0, f.length[seq]-f.window)
	}
}

func (f *fakeDecoder) Remove(seq, from int) bool {
	if from > f.length[seq] {
		f.t.Errorf("sequence %d has %d tokens and is cut at %d", seq, f.length[seq], from)
	}
	if from > 0 && (f.stuck || from < f.Floor(seq)) {
		return false
	}
	f.length[seq] = from
	return true
}

func (f *fakeDecoder) Copy(from, to int) {
	f.copies = append(f.copies, [2]int{from, to})
	f.length[to] = f.length[from]
	f.copied++
}

// Adapt takes the number of adapters: tokens read with adapters count as other tokens.
func (f *fakeDecoder) Adapt(adapters string) error {
	n, err := strconv.Atoi(cmp.Or(adapters, "0"))
	f.shift = Token(100 * n)
	return err
}

// fakeState is a saved sequence of one byte per token.
type fakeState struct {
	f    *fakeDecoder
	data []Token
}

func (s *fakeState) Bytes() int64 { return int64(len(s.data)) }

func (s *fakeState) Data() []byte {
	out := make([]byte, len(s.data))
	for i, t := range s.data {
		out[i] = byte(t)
	}
	return out
}

// fakeStateOf decodes the Data of a state.
func fakeStateOf(data []byte) *fakeState {
	s := &fakeState{}
	for _, b := range data {
		s.data = append(s.data, Token(b))
	}
	return s
}

func (s *fakeState) Free() {
	if s.data == nil {
		s.f.t.Error("a state was freed twice")
	}
	s.f.bytes.Add(-s.Bytes())
	s.f.states.Add(-1)
	s.data = nil
}

func (f *fakeDecoder) Save(seq int, limit int64) State {
	if int64(f.length[seq]) > limit {
		return nil
	}
	s := &fakeState{f, make([]Token, f.length[seq])}
	copy(s.data, f.data[seq])
	f.states.Add(1)
	f.bytes.Add(s.Bytes())
	return s
}

func (f *fakeDecoder) Load(seq int, state State) bool {
	s, ok := state.(*fakeState)
	if !ok || s.data == nil {
		f.t.Error("a state was loaded that is not there")
		return false
	}
	f.data[seq] = slices.Clone(s.data)
	f.length[seq] = len(s.data)
	f.loaded++
	return true
}

// fakeLogits returns the fake engine's logits after the tokens.
func fakeLogits(history []Token) []float32 {
	h := fnv.New64a()
	for _, t := range history {
		_, _ = h.Write([]byte{byte(t), byte(t >> 8)})
	}
	x := h.Sum64()
	out := make([]float32, fakeVocab)
	for i := range out {
		x = x*6364136223846793005 + 1442695040888963407
		out[i] = float32(x >> 40)
	}
	out[0] /= 2 // make ends rare
	return out
}

// fakeChooser takes the likeliest token. With a seed it takes another one, depending on the seed,
// the logits and the number of tokens chosen.
type fakeChooser struct {
	seed   uint64
	chosen uint64
	closed int
	err    error

	ahead  int     // forced tokens after each chosen one
	told   []Token // tokens of Ahead still to be followed
	logits []bool  // for each call of Follow: whether it got logits
}

func (c *fakeChooser) Choose(logits []float32) (Choice, error) {
	if c.err != nil {
		return Choice{}, c.err
	}
	c.chosen++
	best := 0
	for i, l := range logits {
		if l > logits[best] {
			best = i
		}
	}
	if c.seed != 0 && best != 0 {
		best = 1 + int((uint64(best)+c.seed*c.chosen)%(fakeVocab-1))
	}
	if len(c.told) > 0 {
		return Choice{}, errors.New("not all that must follow was followed")
	}
	c.told = aheadOf(Token(best), c.ahead)
	return Choice{Token: Token(best), LogProbs: []LogProb{{Token(best), -float32(c.chosen)}}, Ahead: slices.Clone(c.told)}, nil
}

// aheadOf returns n forced tokens after t.
func aheadOf(t Token, n int) []Token {
	var out []Token
	for range n {
		t = 1 + (t*5+3)%(fakeVocab-1)
		out = append(out, t)
	}
	return out
}

func (c *fakeChooser) Follow(t Token, logits []float32) []LogProb {
	if len(c.told) == 0 || c.told[0] != t {
		panic("a token follows that was not announced")
	}
	c.told = c.told[1:]
	c.logits = append(c.logits, logits != nil)
	if logits == nil {
		return nil
	}
	return []LogProb{{t, logits[t]}}
}

func (c *fakeChooser) Close() { c.closed++ }

func fakeVocabulary() Vocab {
	v := Vocab{Pieces: make([]string, fakeVocab), Ends: make([]bool, fakeVocab)}
	for i := 1; i < fakeVocab; i++ {
		v.Pieces[i] = string(rune('a' + i - 1))
	}
	v.Ends[0] = true
	return v
}

// alone returns the answer that a request must get, whatever else happens.
func alone(prompt []Token, seed uint64, maxTokens, slotTokens int, stops []string) (text string, finish Finish, tokens int) {
	return aloneAhead(prompt, seed, 0, maxTokens, slotTokens, stops)
}

func aloneAhead(prompt []Token, seed uint64, ahead, maxTokens, slotTokens int, stops []string) (text string, finish Finish, tokens int) {
	history, c, split := slices.Clone(prompt), &fakeChooser{seed: seed}, splitter{stops: stops}
	vocab := fakeVocabulary()
	var b strings.Builder
	var must []Token
	for {
		var choice Choice
		if len(must) > 0 {
			choice, must = Choice{Token: must[0]}, must[1:]
		} else {
			choice, _ = c.Choose(fakeLogits(history))
			must = aheadOf(choice.Token, ahead)
		}
		tokens++
		if vocab.Ends[choice.Token] {
			return b.String() + split.flush(), FinishStop, tokens
		}
		part, stopped := split.push(vocab.Pieces[choice.Token])
		b.WriteString(part)
		switch {
		case stopped:
			return b.String(), FinishStop, tokens
		case maxTokens > 0 && tokens >= maxTokens, len(prompt)+tokens >= slotTokens:
			return b.String() + split.flush(), FinishLength, tokens
		}
		history = append(history, choice.Token)
	}
}

// run is a test's request with its events.
type run struct {
	*Request
	chooser *fakeChooser

	mu     sync.Mutex // guards below
	text   strings.Builder
	events []Event
	ended  chan struct{} // closed by the last event
}

func newRun(prompt []Token, maxTokens int) *run {
	r := &run{chooser: &fakeChooser{}, ended: make(chan struct{})}
	r.Request = &Request{Prompt: prompt, MaxTokens: maxTokens, Chooser: r.chooser, Emit: r.take}
	return r
}

func (r *run) take(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.events) > 0 && r.events[len(r.events)-1].Last() {
		panic("an event after the last one")
	}
	r.events = append(r.events, e)
	r.text.WriteString(e.Text)
	if e.Last() {
		close(r.ended)
	}
}

// last waits for the end and returns the text and the last event.
func (r *run) last() (string, Event) {
	<-r.ended
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String(), r.events[len(r.events)-1]
}

func (r *run) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.events)
}

func fakeConfig(slots int) Config {
	return Config{Slots: slots, SlotTokens: 200, StepTokens: 32, PromptChunk: 8, PromptPause: 100 * time.Millisecond, Queue: 100, Vocab: fakeVocabulary(), Log: hclog.NewNullLogger()}
}

// bubble runs a test with a scheduler in a bubble of synctest, and ends the scheduler after it.
func bubble(t *testing.T, f *fakeDecoder, conf Config, test func(t *testing.T, s *Scheduler)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := New(f, conf)
		go s.Run()
		defer func() {
			s.Stop()
			<-s.Done()
			must.Eq(t, 0, f.states.Load())
			must.Eq(t, 0, f.bytes.Load())
		}()
		test(t, s)
	})
}

// prompt returns n tokens that differ with the seed.
func prompt(seed, n int) []Token {
	out := make([]Token, n)
	for i := range out {
		out[i] = Token(1 + (seed*7+i*i+seed*i)%(fakeVocab-1))
	}
	return out
}

// long returns a prompt whose answer does not end within n tokens.
func long(t testing.TB, length, n int) []Token {
	t.Helper()
	for seed := length; seed < 10000; seed++ { // prompts of different lengths share no prefix
		if _, _, got := alone(prompt(seed, length), 0, n, 1<<30, nil); got == n {
			return prompt(seed, length)
		}
	}
	t.Fatal("no long answer")
	return nil
}

var errBroken = errors.New("it is broken")

// asAlone checks that a run's answer is the one it would get alone.
func asAlone(t testing.TB, r *run, conf Config) {
	t.Helper()
	text, e := r.last()
	must.NoError(t, e.Err)
	want, finish, tokens := aloneAhead(r.Prompt, r.chooser.seed, r.chooser.ahead, r.MaxTokens, conf.SlotTokens, r.Stops)
	must.Eq(t, want, text)
	must.Eq(t, finish, e.Finish)
	must.Eq(t, tokens, e.Tokens)
	must.Eq(t, 1, r.chooser.closed)
}
