package batch

import (
	"errors"
	"iter"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Config configures a Scheduler.
type Config struct {
	Slots       int           // sequences of the decoder
	SlotTokens  int           // positions of each sequence
	StepTokens  int           // maximum tokens of a step; at least Slots
	PromptChunk int           // prompt tokens in a step while answers are being generated; 0: by PromptPause
	PromptPause time.Duration // estimated time that prompts may add to such a step
	Queue       int           // requests that may wait for a slot
	SavedBytes  int64         // bound of the store of sequences that lost their slot; 0: no store
	Checkpoints bool          // also save sequences near the end of prompts, as the decoder cannot cut them
	DraftTokens int           // maximum draft tokens of a step; 0: no drafts
	LookUp      bool          // draft from a request's own text
	Drafter     *Drafter      // drafts where the text has no match; nil: none
	PinThread   bool          // stay on one thread, which graphics drivers prefer
	Hash        HashFunc      // for Blocks; nil: Blocks returns nothing
	// Restored holds the sequences that an earlier scheduler kept, most recently used last. The
	// scheduler frees the states.
	Restored []Sequence
	// Parting is called by Run at its end with the sequences for a later scheduler, most recently
	// used first. Each state is valid until the next one. Nil: nothing is kept.
	Parting func(iter.Seq[Sequence])
	Vocab   Vocab
	Log     hclog.Logger
}

// Scheduler runs the steps of one decoder: each step evaluates the last token of every request in
// progress and a part of new prompts. Its methods are safe for concurrent use.
type Scheduler struct {
	conf    Config
	decoder Decoder

	// Owned by the goroutine of Run.
	slots   []*slot
	prompts []*slot // slots whose prompt is not yet completely in the cache
	entries []Entry // of the current step
	drafts  int     // draft tokens among entries
	unsure  bool    // no drafts in the next step: the cache had no room for the last one
	pace    pace
	adapted string // the adapters of the current step
	saved   store
	clock   int64 // counts uses of slots

	wake chan struct{} // capacity 1: something changed
	done chan struct{} // closed when Run has returned

	blocks    atomic.Pointer[[]uint64] // see Blocks
	kvUsed    atomic.Int64
	evaluated atomic.Int64 // prompt tokens
	reused    atomic.Int64 // prompt tokens found in the cache
	drafted   atomic.Int64 // drafted tokens
	accepted  atomic.Int64 // drafted tokens that were then chosen
	rate      rate

	mu       sync.Mutex // guards below
	queue    []*Request
	active   int
	stopping bool
	failure  string // why the engine is unusable
}

// slot is one sequence of the decoder. Its contents stay when its request ends, for the next
// request with the same prefix.
type slot struct {
	seq   int
	req   *Request // nil: free
	split splitter

	held    []Token  // tokens of the sequence in the cache
	adapted string   // adapters that held was read with
	stepped int64    // last step of the slot, by the scheduler's clock
	turn    int      // length of the last request's prompt within held
	used    int64    // last use of the slot, by the scheduler's clock
	chain   []uint64 // block hashes of held, as far as requests have ended
	copying bool     // a copy to this slot is deferred to the next step
	copied  bool     // a copy from this slot is deferred to the next step

	mark      int     // prompt token at which to make a checkpoint; 0: none
	reused    int     // prompt tokens found in the cache
	waited    int     // prompt tokens that other requests got while this one's prompt waited
	text      []Token // the prompt and the tokens chosen after it
	reading   int     // tokens of text to evaluate before the next one is chosen
	next      Token   // chosen and not yet in the cache
	ahead     []Token // forced tokens that follow
	sure      int     // tokens of ahead in the current step
	generated int

	draft             []Token // draft tokens in the current step
	odds              odds
	drafted, accepted int // tokens drafted for the answer, and those of them that were chosen

	add int // tokens of this slot in the current step
	row int // row of this slot's logits in the current step; -1: none
}

// missing returns how many prompt tokens are not yet in the cache.
func (s *slot) missing() int { return max(0, s.reading-len(s.held)) }

// New returns a scheduler. The caller must call Run.
func New(decoder Decoder, conf Config) *Scheduler {
	s := &Scheduler{conf: conf, decoder: decoder, wake: make(chan struct{}, 1), done: make(chan struct{})}
	s.saved.limit = conf.SavedBytes
	s.pace.answers = make([]time.Duration, conf.Slots+1)
	for i := range conf.Slots {
		s.slots = append(s.slots, &slot{seq: i, next: none, row: -1})
	}
	s.restore(conf.Restored)
	s.publish()
	return s
}

// Run works until Stop is called and every request has ended.
func (s *Scheduler) Run() {
	defer close(s.done)
	defer s.saved.clear()
	defer s.part()
	if s.conf.PinThread {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
	}
	for {
		busy, stop := s.settle()
		switch {
		case stop:
			return
		case !busy:
			<-s.wake
		default:
			s.step()
		}
	}
}

// Submit queues requests, all of them or none; their events go to their Emit. It returns a
// *BusyError, a *FailedError or ErrStopping, after closing the requests' Choosers.
func (s *Scheduler) Submit(list ...*Request) error {
	err := s.enqueue(list)
	if err != nil {
		for _, r := range list {
			r.Chooser.Close()
		}
	}
	return err
}

// Room returns the capacity of slots and queue, in requests.
func (s *Scheduler) Room() int { return len(s.slots) + s.conf.Queue }

func (s *Scheduler) enqueue(list []*Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failure != "":
		return &FailedError{s.failure}
	case s.stopping:
		return ErrStopping
	case len(s.queue)+len(list) > s.conf.Queue && s.active+len(s.queue)+len(list) > s.Room():
		return &BusyError{Slots: len(s.slots), Waiting: len(s.queue)}
	}
	s.queue = append(s.queue, list...)
	s.poke()
	return nil
}

// Cancel ends a request between two steps, for example when its client has disconnected. No event
// follows, except one already on its way.
func (s *Scheduler) Cancel(r *Request) {
	r.cancelled.Store(true)
	s.poke()
}

// Stop ends every request with ErrStopping, and then Run. It does not wait; see Done.
func (s *Scheduler) Stop() {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	s.poke()
}

// Done is closed when Run has returned.
func (s *Scheduler) Done() <-chan struct{} { return s.done }

// Stats is a snapshot of a scheduler's load and counters.
type Stats struct {
	Active, Queued  int
	Failure         string // why the engine failed; empty: it has not failed
	CacheTokens     int    // positions used by requests; kept sequences do not count
	PromptEvaluated int64  // prompt tokens
	PromptReused    int64  // prompt tokens found in the cache
	Drafted         int64  // tokens drafted for answers
	Accepted        int64  // drafted tokens that were then chosen
	TokensTotal     int64  // generated
	TokensPerSecond float64
}

// Stats returns the scheduler's load.
func (s *Scheduler) Stats() Stats {
	st := Stats{
		CacheTokens: int(s.kvUsed.Load()), PromptEvaluated: s.evaluated.Load(), PromptReused: s.reused.Load(),
		Drafted: s.drafted.Load(), Accepted: s.accepted.Load(), TokensTotal: s.rate.total.Load(), TokensPerSecond: s.rate.perSecond(time.Now()),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Active, st.Queued, st.Failure = s.active, len(s.queue), s.failure
	return st
}

func (s *Scheduler) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// settle drops cancelled requests and fills free slots. It reports whether there is work, and
// whether to stop.
func (s *Scheduler) settle() (busy, stop bool) {
	for _, x := range s.slots {
		if x.req != nil && x.req.cancelled.Load() {
			s.release(x)
		}
	}
	s.mu.Lock()
	if s.stopping {
		queue := s.queue
		s.queue = nil
		s.mu.Unlock()
		s.failAll(queue, ErrStopping)
		return false, true
	}
	var dropped []*Request
	s.queue = slices.DeleteFunc(s.queue, func(r *Request) bool {
		gone := r.cancelled.Load()
		if gone {
			dropped = append(dropped, r)
		}
		return gone
	})
	waiting := slices.Clone(s.queue)
	s.mu.Unlock()
	admitted := s.next(waiting)
	s.mu.Lock()
	s.queue = slices.DeleteFunc(s.queue, func(r *Request) bool { return slices.Contains(admitted, r) })
	s.active += len(admitted)
	busy = s.active > 0
	s.mu.Unlock()
	for _, r := range dropped {
		r.Chooser.Close()
	}
	for _, r := range admitted {
		s.admit(r)
	}
	if len(admitted) > 0 {
		s.countCache()
	}
	return busy, false
}

// next returns the waiting requests that get a slot, in order of arrival. One that is put off keeps
// its place.
func (s *Scheduler) next(waiting []*Request) []*Request {
	free := 0
	for _, x := range s.slots {
		if x.req == nil {
			free++
		}
	}
	var admitted []*Request
	for _, r := range waiting[:min(free, len(waiting))] {
		if !s.putOff(r, admitted) {
			admitted = append(admitted, r)
		}
	}
	return admitted
}

// admit gives a request a free slot.
func (s *Scheduler) admit(r *Request) {
	x := s.place(r.Prompt, r.Adapters)
	s.clock++
	x.req, x.split, x.next, x.generated, x.used = r, splitter{stops: r.Stops}, none, 0, s.clock
	x.reused, x.turn, x.waited, x.mark = len(x.held), len(r.Prompt), 0, s.mark(x, r.Prompt)
	x.text, x.reading = slices.Clip(r.Prompt), len(r.Prompt)
	x.odds, x.drafted, x.accepted, x.ahead = odds{}, 0, 0, nil
	s.reused.Add(int64(x.reused))
	s.prompts = append(s.prompts, x)
	if r.Admitted != nil {
		r.Admitted()
	}
}

// release frees a slot. Its contents stay.
func (s *Scheduler) release(x *slot) {
	x.req.Chooser.Close()
	s.prompts = slices.DeleteFunc(s.prompts, func(p *slot) bool { return p == x })
	s.clock++
	x.req, x.row, x.add, x.used, x.text = nil, -1, 0, s.clock, nil
	x.chain = s.chain(x.held, x.adapted)
	s.publish()
	s.countCache()
	s.mu.Lock()
	s.active--
	s.mu.Unlock()
}

// end frees a slot and then sends its request's last event. In this order, the client's next
// request finds the slot free.
func (s *Scheduler) end(x *slot, e Event) {
	r := x.req
	e.Tokens, e.Reused, e.Drafted, e.Accepted = x.generated, x.reused, x.drafted, x.accepted
	s.release(x)
	r.Emit(e)
}

func (s *Scheduler) fail(x *slot, err error) { s.end(x, Event{Chosen: none, Err: err}) }

// failAll ends the requests in the queue and in slots.
func (s *Scheduler) failAll(queue []*Request, err error) {
	for _, r := range queue {
		r.Chooser.Close()
		r.Emit(Event{Chosen: none, Err: err})
	}
	for _, x := range s.slots {
		if x.req != nil {
			s.fail(x, err)
		}
	}
}

func (s *Scheduler) countCache() {
	used := 0
	for _, x := range s.slots {
		if x.req != nil {
			used += len(x.held)
		}
	}
	s.kvUsed.Store(int64(used))
}

// fill builds the batch of a step: first the chosen token of every slot with its forced or draft
// tokens, then as much of the prompts as there is room for. It returns the number of answers in
// progress and of prompt tokens.
func (s *Scheduler) fill() (answers, prompt int) {
	streams := s.takeTurn() // with any adapters
	s.entries, s.drafts = s.entries[:0], 0
	forced := false
	for _, x := range s.slots {
		x.row, x.add, x.sure, x.draft = -1, 0, 0, x.draft[:0]
		if x.takesPart(s.adapted) && x.next >= 0 {
			answers++
			forced = forced || len(x.ahead) > 0
		}
	}
	room, sure := s.draftRoom(answers), 0
	if forced {
		sure = s.sureRoom(answers)
	}
	for _, x := range s.slots {
		if !x.takesPart(s.adapted) || x.next < 0 {
			continue
		}
		x.add, x.sure = 1, x.sureOf(sure, s.conf.SlotTokens)
		sure -= x.sure
		s.drafts += x.sure
		s.entries = append(s.entries, Entry{Token: x.next, Pos: len(x.held), Seq: x.seq})
		for i, t := range x.ahead[:x.sure] {
			s.entries = append(s.entries, Entry{Token: t, Pos: len(x.held) + 1 + i, Seq: x.seq})
		}
		x.row = len(s.entries) - 1
		s.entries[x.row].Logits = true
		if len(x.ahead) > 0 {
			continue
		}
		s.draftFor(x, answers, room-s.drafts)
		for i, t := range x.draft {
			s.entries = append(s.entries, Entry{Token: t, Pos: len(x.held) + 1 + i, Seq: x.seq, Logits: true})
		}
		s.drafts += len(x.draft)
	}
	if len(s.prompts) == 0 {
		return answers, 0
	}
	s.orderPrompts()
	room = s.promptRoom(streams)
	for _, x := range s.prompts {
		if x.add = 0; !x.takesPart(s.adapted) {
			continue
		}
		x.add = min(room-prompt, x.missing())
		if x.mark > 0 { // a step ends there
			x.add = min(x.add, x.mark-len(x.held))
		}
		for i := range x.add {
			at := len(x.held) + i
			last := at == x.reading-1
			if last {
				x.row = len(s.entries)
			}
			s.entries = append(s.entries, Entry{Token: x.text[at], Pos: at, Seq: x.seq, Logits: last})
		}
		prompt += x.add
	}
	return answers, prompt
}

// step decodes one batch and distributes the results.
func (s *Scheduler) step() {
	answers, prompt := s.fill()
	if err := s.decoder.Adapt(s.adapted); err != nil {
		s.broken(err.Error())
		return
	}
	began := time.Now()
	err := s.decoder.Decode(s.entries)
	switch {
	case errors.Is(err, ErrFull) && s.drafts > 0: // draft tokens must not evict anything
		s.unsure = true
		return
	case errors.Is(err, ErrFull):
		s.shed()
		return
	case err != nil:
		s.broken(err.Error())
		return
	}
	s.unsure = false
	now := time.Now()
	s.pace.measured(now.Sub(began), answers, s.drafts, prompt)
	s.evaluated.Add(int64(prompt))
	s.agePrompts(prompt)
	for _, e := range s.entries {
		x := s.slots[e.Seq]
		x.held, x.next = append(x.held, e.Token), none
	}
	for _, x := range s.slots {
		x.copying, x.copied = false, false
		if x.req != nil && x.mark > 0 && len(x.held) == x.mark {
			x.mark = 0
			s.checkpoint(x)
		}
	}
	s.prompts = slices.DeleteFunc(s.prompts, func(x *slot) bool { return x.missing() == 0 })
	s.countCache()
	made := 0
	for _, x := range s.slots {
		if x.req == nil || x.row < 0 {
			continue
		}
		made += s.choose(x)
	}
	if s.drafts > 0 {
		s.countCache()
	}
	if made > 0 {
		s.rate.add(made, now)
	}
}

// choose chooses the tokens after the evaluated ones of an answer, for as long as the draft tokens
// match the choices: the rows after a wrong one belong to another text. It returns how many it
// chose.
func (s *Scheduler) choose(x *slot) (made int) {
	row, kept := x.row, len(x.held)-len(x.draft)
	x.drafted += len(x.draft)
	s.drafted.Add(int64(len(x.draft)))
	for range x.sure {
		c := Choice{Token: x.ahead[0], LogProbs: x.req.Chooser.Follow(x.ahead[0], nil)}
		x.ahead = x.ahead[1:]
		made++
		s.deal(x, c)
		if x.req == nil {
			return made
		}
	}
	right := 0
	for i := range len(x.draft) + 1 {
		choice, err := s.choiceOf(x, s.decoder.Logits(row+i))
		if err != nil {
			s.fail(x, err)
			break
		}
		made++
		hit := i < len(x.draft) && choice.Token == x.draft[i]
		if hit {
			right++
			x.accepted++
			s.accepted.Add(1)
		}
		s.deal(x, choice)
		if !hit || x.req == nil {
			break
		}
	}
	if len(x.draft) > 0 {
		x.odds.learn(right, len(x.draft))
		s.takeBack(x, kept+right)
	}
	return made
}

// choiceOf returns the next token of an answer: a forced one, or the chooser's choice.
func (s *Scheduler) choiceOf(x *slot, logits []float32) (Choice, error) {
	if len(x.ahead) > 0 {
		t := x.ahead[0]
		x.ahead = x.ahead[1:]
		return Choice{Token: t, LogProbs: x.req.Chooser.Follow(t, logits)}, nil
	}
	choice, err := x.req.Chooser.Choose(logits)
	if err != nil {
		return choice, err
	}
	for _, t := range append([]Token{choice.Token}, choice.Ahead...) {
		if t < 0 || int(t) >= len(s.conf.Vocab.Pieces) {
			return choice, errors.New("chooser returned no token")
		}
	}
	x.ahead = choice.Ahead
	return choice, nil
}

// deal sends the event of a chosen token, and ends the request where the generation ends.
func (s *Scheduler) deal(x *slot, c Choice) {
	x.generated++
	e := Event{Tokens: x.generated, Reused: x.reused, Chosen: c.Token, LogProbs: c.LogProbs}
	if s.conf.Vocab.Ends[c.Token] {
		e.Text, e.Finish = x.split.flush(), FinishStop
		e.Sent = x.split.sent
		s.end(x, e)
		return
	}
	var stopped bool
	pieces := s.conf.Vocab.Pieces
	if x.req.Pieces != nil {
		pieces = x.req.Pieces
	}
	e.Text, stopped = x.split.push(pieces[c.Token])
	switch {
	case stopped:
		e.Finish = FinishStop
	case x.req.MaxTokens > 0 && x.generated >= x.req.MaxTokens, len(x.req.Prompt)+x.generated >= s.conf.SlotTokens:
		e.Text += x.split.flush()
		e.Finish = FinishLength
	}
	e.Sent = x.split.sent
	if e.Finish != "" {
		s.end(x, e)
		return
	}
	x.next, x.text = c.Token, append(x.text, c.Token)
	if e.Text != "" || e.LogProbs != nil {
		x.req.Emit(e)
	}
}

// shed makes room after a step that failed for lack of cache. It first evicts kept sequences of
// ended requests, and then ends the request with the shortest answer, the youngest among equals.
func (s *Scheduler) shed() {
	if x := s.oldestKept(); x != nil {
		s.forget(x)
		return
	}
	var victim *slot
	for _, x := range s.slots {
		if x.req != nil && (victim == nil || x.generated < victim.generated || x.generated == victim.generated && x.used > victim.used) {
			victim = x
		}
	}
	if victim == nil {
		s.broken("the cache is full though no request uses it")
		return
	}
	s.conf.Log.Warn("no room in the context cache, request dropped", "positions", len(victim.held))
	s.forget(victim)
	s.fail(victim, ErrCacheFull)
}

// broken ends every request: after an engine error its results cannot be trusted.
func (s *Scheduler) broken(why string) {
	s.conf.Log.Error("engine failed", "error", why)
	s.mu.Lock()
	s.failure = why
	queue := s.queue
	s.queue = nil
	s.mu.Unlock()
	s.failAll(queue, &FailedError{why})
}
