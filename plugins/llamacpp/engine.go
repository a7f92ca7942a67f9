package llamacpp

import (
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hybridgroup/yzma/pkg/llama"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// engine runs the steps of one context: each decodes a token of every request that is being
// answered and a chunk of new prompts. Everything of the context is touched by the goroutine of run
// alone.
type engine struct {
	log   hclog.Logger
	model *model
	ctx   llama.Context
	mem   llama.Memory
	batch llama.Batch

	limit       int // positions per slot
	batchTokens int
	promptChunk int
	maxQueue    int
	pinned      bool // stay on one thread, which graphics drivers like better

	slots   []*slot
	prompts []*slot // slots whose prompt is not whole in the cache yet, oldest first

	wake chan struct{} // capacity 1: something changed
	done chan struct{} // closed when run has returned

	kvUsed atomic.Int64
	rate   rate

	mu       sync.Mutex // guards below
	queue    []*request
	active   int
	stopping bool
	failure  string // why the engine is of no more use
}

// slot is one sequence of the context.
type slot struct {
	seq     []llama.SeqId // its id, as a batch wants it
	req     *request      // nil: free
	sampler llama.Sampler
	split   splitter

	fed       int         // prompt tokens in the cache
	past      int         // positions in the cache
	next      llama.Token // chosen and not in the cache yet; negative: none
	generated int

	add int // tokens of this slot in the current batch
	row int // of the current batch, whose logits are this slot's; -1: none
}

func (s *slot) feeding() bool { return s.fed < len(s.req.prompt) }

// run works until stop is called and everything is ended.
func (e *engine) run() {
	defer close(e.done)
	if e.pinned {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
	}
	for {
		busy, stop := e.settle()
		switch {
		case stop:
			return
		case !busy:
			<-e.wake
		default:
			e.step()
		}
	}
}

// submit queues a request. Its events come to r.out until the last one.
func (e *engine) submit(r *request) *openai.Error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.failure != "":
		return engineFailed(e.failure)
	case e.stopping:
		return errStopping()
	case len(e.queue) >= e.maxQueue && e.active+len(e.queue) >= len(e.slots)+e.maxQueue:
		return openai.NewError(http.StatusServiceUnavailable, openai.TypeUnavailable, "", openai.CodeOverloaded,
			"all %d slots of this worker are busy and %d requests are waiting; try again later", len(e.slots), len(e.queue))
	}
	e.queue = append(e.queue, r)
	e.poke()
	return nil
}

// cancel ends a request whose client is gone. No event follows.
func (e *engine) cancel(r *request) {
	r.cancelled.Store(true)
	e.poke()
}

// stop ends every request with an error and run.
func (e *engine) stop() {
	e.mu.Lock()
	e.stopping = true
	e.mu.Unlock()
	e.poke()
}

func (e *engine) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// load returns the number of requests in slots and in the queue, and why the engine failed.
func (e *engine) load() (active, queued int, failure string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.active, len(e.queue), e.failure
}

func errStopping() *openai.Error {
	return openai.NewError(http.StatusServiceUnavailable, openai.TypeUnavailable, "", "stopping", "the worker is stopping; send the request again")
}

func engineFailed(why string) *openai.Error {
	return openai.NewError(http.StatusInternalServerError, openai.TypeServer, "", "engine_failed", "the engine of this worker has failed (%s); send the request again, to another worker", why)
}

// settle drops what is cancelled and fills free slots. It says whether there is work, and whether
// to end.
func (e *engine) settle() (busy, stop bool) {
	for _, s := range e.slots {
		if s.req != nil && s.req.cancelled.Load() {
			e.release(s)
		}
	}
	e.mu.Lock()
	if e.stopping {
		queue := e.queue
		e.queue = nil
		e.mu.Unlock()
		for _, r := range queue {
			r.out.put(event{err: errStopping()})
		}
		for _, s := range e.slots {
			if s.req != nil {
				e.fail(s, errStopping())
			}
		}
		return false, true
	}
	e.queue = slices.DeleteFunc(e.queue, func(r *request) bool { return r.cancelled.Load() })
	var admitted []*slot
	for _, s := range e.slots {
		if s.req == nil && len(e.queue) > 0 {
			s.req = e.queue[0]
			e.queue = slices.Delete(e.queue, 0, 1)
			e.active++
			admitted = append(admitted, s)
		}
	}
	busy = e.active > 0
	e.mu.Unlock()
	for _, s := range admitted {
		s.fed, s.past, s.generated, s.next = 0, 0, 0, llama.TokenNull
		s.split = splitter{stops: s.req.stops}
		s.sampler = e.model.newSampler(s.req.sampling, s.req.prompt)
		e.prompts = append(e.prompts, s)
	}
	return busy, false
}

// release frees a slot and its part of the cache.
func (e *engine) release(s *slot) {
	if _, err := llama.MemorySeqRm(e.mem, s.seq[0], -1, -1); err != nil {
		e.log.Warn("cache of a slot could not be cleared", "error", err)
	}
	if s.sampler != 0 {
		llama.SamplerFree(s.sampler)
	}
	e.prompts = slices.DeleteFunc(e.prompts, func(p *slot) bool { return p == s })
	s.req, s.sampler, s.past, s.row, s.add = nil, 0, 0, -1, 0
	e.countCache()
	e.mu.Lock()
	e.active--
	e.mu.Unlock()
}

// finish ends a slot's request well. The slot is free before the client can know, so that its next
// request finds it.
func (e *engine) finish(s *slot, text, reason string) {
	r, n := s.req, s.generated
	e.release(s)
	r.out.put(event{text: text, finish: reason, tokens: n})
}

// fail ends a slot's request with an error.
func (e *engine) fail(s *slot, err *openai.Error) {
	r, n := s.req, s.generated
	e.release(s)
	r.out.put(event{err: err, tokens: n})
}

func (e *engine) countCache() {
	used := 0
	for _, s := range e.slots {
		if s.req != nil {
			used += s.past
		}
	}
	e.kvUsed.Store(int64(used))
}

// fill builds the batch of a step: the chosen token of every slot first, then prompts in the order
// they came.
func (e *engine) fill() error {
	if err := e.batch.Clear(); err != nil {
		return err
	}
	n := 0
	for _, s := range e.slots {
		s.row, s.add = -1, 0
		if s.req == nil || s.next < 0 {
			continue
		}
		if err := e.batch.Add(s.next, llama.Pos(s.past), s.seq, true); err != nil {
			return err
		}
		s.row, s.add = n, 1
		n++
	}
	room := e.batchTokens - n
	if n > 0 { // running streams pause for as long as the step takes
		room = min(room, e.promptChunk)
	}
	for _, s := range e.prompts {
		s.add = min(room, len(s.req.prompt)-s.fed)
		for i := range s.add {
			at := s.fed + i
			last := at == len(s.req.prompt)-1
			if err := e.batch.Add(s.req.prompt[at], llama.Pos(s.past+i), s.seq, last); err != nil {
				return err
			}
			if last {
				s.row = n
			}
			n++
		}
		room -= s.add
	}
	return nil
}

// step decodes one batch and deals out what came of it.
func (e *engine) step() {
	if err := e.fill(); err != nil {
		e.broken(fmt.Sprintf("the batch could not be built: %v", err))
		return
	}
	theLibrary.logs.forget()
	code, err := llama.Decode(e.ctx, e.batch)
	switch {
	case err != nil:
		e.broken(err.Error())
		return
	case code == 1:
		e.shed()
		return
	case code != 0:
		e.broken(fmt.Sprintf("decoding returned %d%s", code, theLibrary.logs.explain()))
		return
	}
	made := 0
	for _, s := range e.slots {
		if s.req == nil || s.add == 0 {
			continue
		}
		s.past += s.add
		if s.feeding() {
			s.fed += s.add
			if !s.feeding() {
				e.prompts = slices.DeleteFunc(e.prompts, func(p *slot) bool { return p == s })
			}
		}
		s.next = llama.TokenNull
	}
	e.countCache()
	for _, s := range e.slots {
		if s.req == nil || s.row < 0 {
			continue
		}
		token := llama.SamplerSample(s.sampler, e.ctx, int32(s.row))
		if token < 0 || int(token) >= len(e.model.pieces) {
			e.fail(s, engineFailed("it chose no token"))
			continue
		}
		made++
		e.deal(s, token)
	}
	if made > 0 {
		e.rate.add(made, time.Now())
	}
}

// deal sends what a chosen token makes, and ends the request where it ends.
func (e *engine) deal(s *slot, token llama.Token) {
	s.generated++
	if e.model.ends[token] {
		e.finish(s, s.split.flush(), openai.FinishStop)
		return
	}
	text, stopped := s.split.push(e.model.pieces[token])
	switch {
	case stopped:
		e.finish(s, text, openai.FinishStop)
	case s.req.maxTokens > 0 && s.generated >= s.req.maxTokens, len(s.req.prompt)+s.generated >= e.limit:
		e.finish(s, text+s.split.flush(), openai.FinishLength)
	default:
		s.next = token
		if text != "" {
			s.req.out.put(event{text: text, tokens: s.generated})
		}
	}
}

// shed gives up the youngest request when the cache has no room for a step, which changed nothing.
func (e *engine) shed() {
	var victim *slot
	if n := len(e.prompts); n > 0 {
		victim = e.prompts[n-1]
	} else {
		for _, s := range e.slots {
			if s.req != nil && (victim == nil || s.generated < victim.generated) {
				victim = s
			}
		}
	}
	if victim == nil {
		e.broken("the cache is full though no request uses it")
		return
	}
	e.log.Warn("no room in the context cache, a request was given up", "positions", victim.past)
	e.fail(victim, openai.NewError(http.StatusServiceUnavailable, openai.TypeUnavailable, "", openai.CodeOverloaded, "the context memory of this worker is full; try again later"))
}

// broken ends every request: after an error of the engine nothing that it says can be trusted.
func (e *engine) broken(why string) {
	e.log.Error("engine failed", "error", why)
	e.mu.Lock()
	e.failure = why
	queue := e.queue
	e.queue = nil
	e.mu.Unlock()
	for _, r := range queue {
		r.out.put(event{err: engineFailed(why)})
	}
	for _, s := range e.slots {
		if s.req != nil {
			e.fail(s, engineFailed(why))
		}
	}
}

// rate counts tokens over the last seconds.
type rate struct {
	total atomic.Int64

	mu      sync.Mutex // guards below
	buckets [rateBuckets]struct {
		slice  int64 // since 1970, in rateSlice
		tokens int
	}
	began int64 // the slice of the first token after a pause
}

const (
	rateSlice   = 250 * time.Millisecond
	rateBuckets = 20 // 5 s
)

func (r *rate) add(n int, now time.Time) {
	r.total.Add(int64(n))
	r.mu.Lock()
	defer r.mu.Unlock()
	at := now.UnixNano() / int64(rateSlice)
	if r.sumLocked(at) == 0 {
		r.began = at
	}
	b := &r.buckets[at%rateBuckets]
	if b.slice != at {
		b.slice, b.tokens = at, 0
	}
	b.tokens += n
}

func (r *rate) sumLocked(at int64) int {
	sum := 0
	for _, b := range r.buckets {
		if b.slice > at-rateBuckets && b.slice <= at {
			sum += b.tokens
		}
	}
	return sum
}

// perSecond is the rate over the last 5 seconds, or since the first token after a pause where that
// is shorter, but at least a second.
func (r *rate) perSecond(now time.Time) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := now.UnixNano() / int64(rateSlice)
	span := min(max(at-r.began+1, int64(time.Second/rateSlice)), rateBuckets)
	return float64(r.sumLocked(at)) / (time.Duration(span) * rateSlice).Seconds()
}
