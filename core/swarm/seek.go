package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
)

const (
	// alonePatience is how long a hive waits without a byte before it goes to the origin whatever
	// the leader plans; busyPatience applies if there are seeders, but all are full.
	alonePatience = 10 * time.Second
	busyPatience  = time.Minute
	// avoidFor is how long a hive that failed is avoided, busyFor one that was full.
	avoidFor = 30 * time.Second
	busyFor  = 2 * time.Second
	// farewell bounds the last claim of a file.
	farewell    = 2 * time.Second
	maxPoisoned = 1024
)

// ClientOptions configure a Client.
type ClientOptions struct {
	// Dial connects to the files of a hive, as rpc.Pool.DialBlob does.
	Dial func(ctx context.Context, hive, address string) (net.Conn, error)
	// Claim asks the leader. It has its own deadline. Hive may be empty: the leader knows the
	// caller.
	Claim func(ctx context.Context, c Claim) (Plan, error)
	// Have returns how many bytes of a file are present, counted from its beginning.
	Have   func(digest string) int64
	Mute   bool // this hive serves no files
	Logger hclog.Logger
}

// Client determines where this hive fetches files from. It is safe for concurrent use.
type Client struct {
	opts ClientOptions

	mu       sync.Mutex // guards below
	seekers  map[string][]*Seeker
	poisoned map[string]map[string]bool // by digest: hives of which at least one sent wrong bytes
}

// NewClient returns a client.
func NewClient(o ClientOptions) *Client {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	return &Client{opts: o, seekers: map[string][]*Seeker{}, poisoned: map[string]map[string]bool{}}
}

// Fetching reports whether a file is being fetched, and whether from its origin.
func (c *Client) Fetching(digest string) (fetching, fromOrigin bool) {
	c.mu.Lock()
	list := slices.Clone(c.seekers[digest])
	c.mu.Unlock()
	for _, s := range list {
		s.mu.Lock()
		fetching = fetching || s.stage != 0
		fromOrigin = fromOrigin || s.stage == FromOrigin
		s.mu.Unlock()
	}
	return fetching, fromOrigin
}

// Step says where to start or continue fetching a file.
type Step struct {
	Origin bool
	Seeder Seeder // if Origin is false; an empty Hive means that there is no source
}

// Seeker fetches one file. One goroutine at a time calls its methods, except Fetch.
type Seeker struct {
	c      *Client
	digest string
	size   int64
	say    func(format string, args ...any)

	used     map[string]bool      // hives that sent unverified bytes
	avoid    map[string]time.Time // hives to avoid, and until when
	busy     map[string]time.Time
	noOrigin error // why the origin failed
	direct   bool  // other hives are no longer used
	now      Step
	said     string

	renewing bool
	end      context.CancelFunc // ends the renewals
	wg       sync.WaitGroup

	mu    sync.Mutex // guards below
	stage Stage      // 0: not started
	link  *link      // to the hive being read from; nil: none
	doubt bool       // the leader does not believe that this hive has more
}

// Seek starts to fetch a file with this digest and size. It calls say with messages that name the
// source. The caller closes the seeker.
func (c *Client) Seek(digest string, sizeBytes int64, say func(format string, args ...any)) *Seeker {
	s := &Seeker{
		c: c, digest: digest, size: sizeBytes, say: say,
		used: map[string]bool{}, avoid: map[string]time.Time{}, busy: map[string]time.Time{},
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seekers[digest] = append(c.seekers[digest], s)
	return s
}

// Close reports the outcome to the leader, and waits for all running work.
func (s *Seeker) Close(ctx context.Context, whole bool) {
	if s.end != nil {
		s.end()
	}
	s.wg.Wait()
	s.mu.Lock()
	begun := s.stage != 0
	s.mu.Unlock()
	s.enter(0, nil)
	s.c.mu.Lock()
	rest := slices.DeleteFunc(s.c.seekers[s.digest], func(x *Seeker) bool { return x == s })
	s.c.seekers[s.digest] = rest
	if len(rest) == 0 {
		delete(s.c.seekers, s.digest)
	}
	s.c.mu.Unlock()
	if !begun || len(rest) > 0 {
		return // another job continues with the file
	}
	stage := Over
	if whole {
		stage = Whole
	}
	// The job may be cancelled, which is exactly what the leader must learn.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	if _, err := s.c.opts.Claim(ctx, Claim{Digest: s.digest, Stage: stage, HaveBytes: s.size, Mute: s.c.opts.Mute}); err != nil {
		s.c.opts.Logger.Debug("failed to report the end of a transfer to the leader", "error", err)
	}
}

// Next returns where to fetch the file from. failed is the reason why the last step ended, nil at
// first: core.Integrity if the final digest was wrong, anything else if the source has no more
// bytes. Next waits for a hive that is about to have bytes. Errors: ctx's.
func (s *Seeker) Next(ctx context.Context, failed error) (Step, error) {
	if failed != nil {
		s.blame(failed)
	}
	s.enter(Asking, nil)
	s.renew(ctx)
	begin := time.Now()
	for {
		if err := ctx.Err(); err != nil {
			return Step{}, core.WithKind(err, core.KindOf(err))
		}
		if s.direct {
			return s.origin(), nil
		}
		plan, err := s.claim(ctx)
		if err != nil {
			if ctx.Err() != nil {
				continue
			}
			s.c.opts.Logger.Debug("no queen answers where to fetch a file", "error", err)
			return s.origin(), nil
		}
		seeder, busy, found := s.choose(plan.Seeders)
		switch {
		case plan.Origin:
			return s.origin(), nil
		case found:
			s.tell("taking it from hive %s", seeder.Name)
			s.used[seeder.Hive] = true
			s.now = Step{Seeder: seeder}
			s.enter(FromHive, newLink(seeder, s.digest, s.size, s.c.opts.Dial, s.doubted))
			return s.now, nil
		case plan.Nobody && !busy:
			return s.nobody(), nil
		}
		patience := alonePatience
		if busy {
			patience = busyPatience
		}
		if time.Since(begin) >= patience {
			s.tell("waited long enough for other hives")
			return s.origin(), nil
		}
		if plan.Waiting != "" {
			s.tell("waiting for hive %s, which fetches it from its origin", plan.Waiting)
		}
		again := askAgain
		if plan.Again > 0 {
			again = min(plan.Again, RenewEvery)
		}
		timer := time.NewTimer(again)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// Fetch writes the bytes [from, to) into w, read from the hive of the last Next. Errors: those of
// w, unchanged; Overloaded, NotFound, Unavailable, Cancelled.
func (s *Seeker) Fetch(ctx context.Context, from, to int64, w io.Writer) error {
	s.mu.Lock()
	l := s.link
	s.mu.Unlock()
	if l == nil {
		return core.Errorf(core.Internal, "fetch from a hive: no hive was chosen")
	}
	return l.fetch(ctx, from, to, w)
}

// origin returns the step to the origin, unless that has already failed.
func (s *Seeker) origin() Step {
	if s.noOrigin != nil {
		return s.nobody()
	}
	s.tell("taking it from its origin")
	s.now = Step{Origin: true}
	s.enter(FromOrigin, nil)
	return s.now
}

func (s *Seeker) nobody() Step {
	s.now = Step{}
	s.enter(Asking, nil)
	return s.now
}

// OriginFailed returns the reason why the origin failed; nil: it did not.
func (s *Seeker) OriginFailed() error { return s.noOrigin }

// blame decides what the last step's failure means for its source.
func (s *Seeker) blame(failed error) {
	now := time.Now()
	hive := s.now.Seeder.Hive
	switch {
	case core.KindOf(failed) == core.Integrity && len(s.used) > 0:
		// Whole files have digests, their parts do not: any of these hives may have sent wrong
		// bytes. From here on, only the origin counts.
		hives := sortedKeys(s.used)
		s.c.poison(s.digest, hives)
		s.c.opts.Logger.Warn("a file fetched from other hives had the wrong digest: it is fetched from its origin", "hives", hives, "error", failed)
		s.say("what came from other hives was not right")
		clear(s.used)
		s.direct = true
	case hive == "":
		s.noOrigin = failed
	case core.KindOf(failed) == core.Overloaded:
		s.busy[hive] = now.Add(busyFor)
	default:
		if !errors.Is(failed, errQuiet) {
			s.say("hive %s gives no more: %v", s.now.Seeder.Name, failed)
		}
		s.avoid[hive] = now.Add(avoidFor)
	}
}

// choose returns the first seeder with a free slot. busy reports whether some seeder is full.
func (s *Seeker) choose(list []Seeder) (chosen Seeder, busy, found bool) {
	now := time.Now()
	for _, x := range list {
		switch {
		case now.Before(s.avoid[x.Hive]) || s.c.isPoisoned(s.digest, x.Hive):
		case now.Before(s.busy[x.Hive]):
			busy = true
		default:
			return x, busy, true
		}
	}
	return Seeder{}, busy, false
}

// claim sends a claim to the leader.
func (s *Seeker) claim(ctx context.Context) (Plan, error) {
	now := time.Now()
	c := Claim{
		Digest: s.digest, HaveBytes: s.c.opts.Have(s.digest), NoOrigin: s.noOrigin != nil, Mute: s.c.opts.Mute, Stage: Asking,
		Avoid: s.c.poisonedBy(s.digest),
	}
	for _, hive := range sortedKeys(s.avoid) {
		if now.Before(s.avoid[hive]) && !slices.Contains(c.Avoid, hive) {
			c.Avoid = append(c.Avoid, hive)
		}
	}
	return s.c.opts.Claim(ctx, c)
}

// renew renews the claim of a file in progress, until Close.
func (s *Seeker) renew(ctx context.Context) {
	if s.renewing {
		return
	}
	s.renewing = true
	// The bytes of a job outlive the call that started them; Close ends this goroutine.
	ctx, s.end = context.WithCancel(context.WithoutCancel(ctx))
	s.wg.Go(func() {
		tick := time.NewTicker(RenewEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			s.mu.Lock()
			c := Claim{Digest: s.digest, Stage: s.stage, Mute: s.c.opts.Mute}
			l := s.link
			s.mu.Unlock()
			if c.Stage != FromHive && c.Stage != FromOrigin {
				continue // Next sends its own claims
			}
			if l != nil {
				c.Source = l.seeder.Hive
			}
			c.HaveBytes = s.c.opts.Have(s.digest)
			plan, err := s.c.opts.Claim(ctx, c)
			s.mu.Lock()
			if l != nil && s.link == l {
				s.doubt = err == nil && !slices.ContainsFunc(plan.Seeders, func(x Seeder) bool { return x.Hive == l.seeder.Hive })
			}
			s.mu.Unlock()
		}
	})
}

func (s *Seeker) doubted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.doubt
}

// enter records the present stage.
func (s *Seeker) enter(stage Stage, l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stage, s.link, s.doubt = stage, l, false
}

// tell reports a message unless it repeats the last one.
func (s *Seeker) tell(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); text != s.said {
		s.said = text
		s.say("%s", text)
	}
}

func (c *Client) poison(digest string, hives []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.poisoned) >= maxPoisoned {
		clear(c.poisoned)
	}
	if c.poisoned[digest] == nil {
		c.poisoned[digest] = map[string]bool{}
	}
	for _, h := range hives {
		c.poisoned[digest][h] = true
	}
}

func (c *Client) isPoisoned(digest, hive string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.poisoned[digest][hive]
}

func (c *Client) poisonedBy(digest string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return sortedKeys(c.poisoned[digest])
}
