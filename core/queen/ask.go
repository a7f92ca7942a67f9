package queen

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
	"github.com/rbee-project/rbee/core/rpc"
	"github.com/rbee-project/rbee/core/sched"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
)

// askTimeout bounds a question to a hive that the hive answers from memory or disk.
const askTimeout = 5 * time.Second

// searchTimeout bounds a question that a hive asks its catalog sources, which it may have to start
// first, and of which one may be silent: it leaves that out.
const searchTimeout = 15 * time.Second

// hiveConn is the connection to a hive.
type hiveConn = grpc.ClientConnInterface

func (q *Queen) conn(hive string) (hiveConn, error) {
	c, err := q.opts.HiveConn(hive)
	if err != nil {
		err = core.Prefix(err, "reach hive "+hive)
		if core.HintOf(err) == "" {
			err = core.WithHint(err, "Look at `rbee status` to see whether the hive is up.")
		}
		return nil, err
	}
	return c, nil
}

// hiveError is what a hive's answer means to the one who asked this queen with ctx. A hive that is
// slow or unreachable is Unavailable, unless it was the caller who gave up.
func (q *Queen) hiveError(ctx context.Context, hive string, err error) error {
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

// liveHives gives the hives that are worth asking, the local one first, and says why the others are
// not.
func (q *Queen) liveHives() (live []core.Hive, refused []sched.Refusal) {
	local := q.opts.LocalHive()
	for _, h := range q.hives() {
		switch {
		case h.Status == core.HiveDown:
			refused = append(refused, sched.Refusal{Name: h.Name, Reason: "is down"})
		case h.Status == core.HiveSuspect:
			refused = append(refused, sched.Refusal{Name: h.Name, Reason: "is silent"})
		case h.ID == local:
			live = append([]core.Hive{h}, live...)
		default:
			live = append(live, h)
		}
	}
	return live, refused
}

// noHive is the error when no hive is ready.
func noHive(refused []sched.Refusal) error {
	if len(refused) == 0 {
		return core.Errorf(core.Unavailable, "no hive has joined the cluster yet").Hint(
			"Start an agent with its hive enabled, such as `rbee agent -dev`, or wait a moment if it is starting.")
	}
	return core.Errorf(core.Unavailable, "no hive is ready: %s", reasons(refused)).Hint(
		"Start the agents of these hives again, and look at `rbee status`.")
}

// reasons lists refusals in a sentence: "hive a is down, hive b is silent".
func reasons(refused []sched.Refusal) string {
	var texts []string
	for _, r := range refused {
		texts = append(texts, "hive "+r.String())
	}
	return strings.Join(texts, ", ")
}

// answered is the answer of one hive.
type answered[T any] struct {
	hive   core.Hive
	answer T
}

// askAll asks every live hive at once, each for at most the timeout. Answers are in the order of
// liveHives; problems name the hives that are not ready or did not answer. err is not nil only when
// nobody answered, or ctx ended.
func askAll[T any](ctx context.Context, q *Queen, timeout time.Duration, ask func(context.Context, hiveConn) (T, error)) (got []answered[T], problems []string, err error) {
	live, refused := q.liveHives()
	for _, r := range refused {
		problems = append(problems, "hive "+r.String())
	}
	if len(live) == 0 {
		return nil, problems, noHive(refused)
	}
	answers := make([]T, len(live))
	errs := make([]error, len(live))
	var wg sync.WaitGroup
	for i, h := range live {
		wg.Go(func() {
			answers[i], errs[i] = askWithin(ctx, q, h.ID, timeout, ask)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, problems, core.FromContext(ctx)
	}
	for i, h := range live {
		if errs[i] != nil {
			err = errs[i]
			problems = append(problems, fmt.Sprintf("hive %s: %v", h.Name, errs[i]))
			continue
		}
		got = append(got, answered[T]{h, answers[i]})
	}
	if len(got) > 0 {
		err = nil
	}
	return got, problems, err
}

// askOne asks one hive for at most askTimeout.
func askOne[T any](ctx context.Context, q *Queen, hive string, ask func(context.Context, hiveConn) (T, error)) (T, error) {
	return askWithin(ctx, q, hive, askTimeout, ask)
}

func askWithin[T any](ctx context.Context, q *Queen, hive string, timeout time.Duration, ask func(context.Context, hiveConn) (T, error)) (T, error) {
	var none T
	c, err := q.conn(hive)
	if err != nil {
		return none, err
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := ask(limited, c)
	if err != nil {
		return none, q.hiveError(ctx, hive, err)
	}
	return answer, nil
}

// ask has the hive at the end of a connection answer an operation. The answer has the type of the
// operation's result. A hive that is older than the operation, or than Ask itself, refuses it as
// Unsupported.
func ask(ctx context.Context, c hiveConn, s operation.Spec, r core.Request) (any, error) {
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

// asking asks an operation of each hive of an askAll.
func asking[R any](o operation.Of[R], r core.Request) func(context.Context, hiveConn) (R, error) {
	return func(ctx context.Context, c hiveConn) (R, error) {
		v, err := ask(ctx, c, o.Spec, r)
		list, _ := v.(R)
		return list, err
	}
}
