package hives

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/queen/liveness"
	"github.com/rbee-project/rbee/core/rpc"
	"github.com/rbee-project/rbee/core/sched"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
)

// AskTimeout bounds a query that a hive answers from memory or disk.
const AskTimeout = 5 * time.Second

// SearchTimeout bounds a query for which a hive asks its catalog sources. It may have to start them
// first, and it leaves out a silent one.
const SearchTimeout = 15 * time.Second

// Conn is the connection to a hive.
type Conn = grpc.ClientConnInterface

// Conn returns the connection to a hive. Errors name the hive and suggest where to look.
func (h *Hives) Conn(hive string) (Conn, error) {
	c, err := h.opts.Conn(hive)
	if err != nil {
		err = core.Prefix(err, "reach hive "+hive)
		if core.HintOf(err) == "" {
			err = core.WithHint(err, "Look at `rbee status` to see whether the hive is up.")
		}
		return nil, err
	}
	return c, nil
}

// Error converts a hive's error for the caller that asked this queen with ctx. A slow or
// unreachable hive is Unavailable, unless the caller itself gave up.
func (h *Hives) Error(ctx context.Context, hive string, err error) error {
	err = rpc.FromStatus(err)
	switch core.KindOf(err) {
	case core.DeadlineExceeded, core.Cancelled:
		if ctx.Err() != nil {
			return core.FromContext(ctx)
		}
		err = core.Errorf(core.Unavailable, "hive %s did not answer in time", hive)
	case core.Unsupported:
		if core.HintOf(err) == "" {
			err = core.WithHint(err, "Install the same version of rbee on hive %s as on the queens.", hive)
		}
	}
	if core.KindOf(err) == core.Unavailable && core.HintOf(err) == "" {
		err = core.WithHint(err, "Look at `rbee status` to see whether hive %s is up, and try again.", hive)
	}
	return err
}

// Live returns the hives worth asking, the local one first, and why the others are not.
func (h *Hives) Live() (live []core.Hive, refused []sched.Refusal) {
	local := h.opts.Local()
	for _, x := range h.List() {
		switch {
		case x.Status == core.HiveDown:
			refused = append(refused, sched.Refusal{Name: x.Name, Reason: "is down"})
		case x.Status == core.HiveSuspect:
			refused = append(refused, sched.Refusal{Name: x.Name, Reason: "is silent"})
		case x.ID == local:
			live = append([]core.Hive{x}, live...)
		default:
			live = append(live, x)
		}
	}
	return live, refused
}

// None returns the error when no hive is ready.
func None(refused []sched.Refusal) error {
	if len(refused) == 0 {
		return core.Errorf(core.Unavailable, "no hive has joined the cluster yet").Hint(
			"Start an agent with its hive enabled, such as `rbee agent -dev`, or wait a moment if it is starting.")
	}
	return core.Errorf(core.Unavailable, "no hive is ready: %s", Reasons(refused)).Hint(
		"Start the agents of these hives again, and look at `rbee status`.")
}

// Reasons joins refusals into a phrase: "hive a is down, hive b is silent".
func Reasons(refused []sched.Refusal) string {
	var texts []string
	for _, r := range refused {
		texts = append(texts, "hive "+r.String())
	}
	return strings.Join(texts, ", ")
}

// Answer is the answer of one hive.
type Answer[T any] struct {
	Hive  core.Hive
	Value T
}

// AskAll asks every live hive concurrently, each for at most the timeout, except those whose answer
// known already has. Answers are in the order of Live; problems name the hives that are not ready
// or did not answer. err is non-nil only if none answered, or ctx ended.
func AskAll[T any](ctx context.Context, h *Hives, timeout time.Duration, known func(*liveness.View) (T, bool), ask func(context.Context, Conn) (T, error)) (got []Answer[T], problems []string, err error) {
	live, refused := h.Live()
	for _, r := range refused {
		problems = append(problems, "hive "+r.String())
	}
	if len(live) == 0 {
		return nil, problems, None(refused)
	}
	answers := make([]T, len(live))
	errs := make([]error, len(live))
	var wg sync.WaitGroup
	for i, x := range live {
		var ok bool
		if answers[i], ok = known(h.opts.Liveness.Hive(x.ID)); ok {
			continue
		}
		wg.Go(func() {
			answers[i], errs[i] = AskWithin(ctx, h, x.ID, timeout, ask)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, problems, core.FromContext(ctx)
	}
	for i, x := range live {
		if errs[i] != nil {
			err = errs[i]
			problems = append(problems, fmt.Sprintf("hive %s: %v", x.Name, errs[i]))
			continue
		}
		got = append(got, Answer[T]{x, answers[i]})
	}
	if len(got) > 0 {
		err = nil
	}
	return got, problems, err
}

// Ask asks one hive for at most AskTimeout.
func Ask[T any](ctx context.Context, h *Hives, hive string, ask func(context.Context, Conn) (T, error)) (T, error) {
	return AskWithin(ctx, h, hive, AskTimeout, ask)
}

// AskWithin asks one hive for at most the timeout.
func AskWithin[T any](ctx context.Context, h *Hives, hive string, timeout time.Duration, ask func(context.Context, Conn) (T, error)) (T, error) {
	var none T
	c, err := h.Conn(hive)
	if err != nil {
		return none, err
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := ask(limited, c)
	if err != nil {
		return none, h.Error(ctx, hive, err)
	}
	return answer, nil
}

// AskNamed asks the hive that the request names, as in Named, to answer an operation.
func AskNamed(ctx context.Context, h *Hives, s operation.Spec, r core.Request) (core.Hive, any, error) {
	found, err := h.Up(ctx, r.Hive)
	if err != nil {
		return found, nil, err
	}
	patience := AskTimeout
	if s.Slow {
		patience = SearchTimeout
	}
	v, err := AskWithin(ctx, h, found.ID, patience, func(ctx context.Context, c Conn) (any, error) { return Answers(ctx, c, s, r) })
	return found, v, err
}

// Answers asks the hive at the other end of a connection to answer an operation. The answer has the
// type of the operation's result. A hive older than the operation, or than Ask itself, refuses it
// as Unsupported.
func Answers(ctx context.Context, c Conn, s operation.Spec, r core.Request) (any, error) {
	r.Operation, r.Hive, r.RequestID = s.Name, core.LocalHive, ""
	text, err := json.Marshal(r)
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "encode request")
	}
	resp, err := hivev1.NewHiveServiceClient(c).Ask(ctx, &hivev1.AskRequest{Operation: string(s.Name), RequestJson: text})
	if err != nil {
		return nil, err
	}
	return s.Receive(resp.GetResultJson())
}

// Asking returns a function for AskAll that asks each hive an operation.
func Asking[R any](o operation.Of[R], r core.Request) func(context.Context, Conn) (R, error) {
	return func(ctx context.Context, c Conn) (R, error) {
		v, err := Answers(ctx, c, o.Spec, r)
		list, _ := v.(R)
		return list, err
	}
}
