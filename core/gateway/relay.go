package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/rbee-project/rbee/core"
)

// drainTime is how long a stream may go on after its [DONE] before its connection is given up.
const drainTime = 100 * time.Millisecond

// relay passes the events of a worker's stream on, byte for byte, each as soon as it is whole. It ends in one of three ways: [DONE] was passed on; an error
// event was passed on or made and the answer is cut; or, where nothing but comments came, *unanswered, so that another worker is asked.
func (in *inference) relay(body io.Reader, cancel context.CancelFunc) error {
	m := in.g.metrics
	buf := in.g.buffers.Get().(*[]byte)
	sp := splitter{buf: *buf}
	defer func() {
		if len(sp.buf) <= keptBuffer {
			*buf = sp.buf
		}
		in.g.buffers.Put(buf)
	}()
	var last time.Time // of the last token; zero: none yet
	sent := false      // an event with data was passed on
	for {
		_, readErr := sp.fill(body)
		block, events := sp.next()
		if len(block) > 0 {
			in.beginStream()
			in.begun = true
			if err := in.send(block); err != nil {
				cancel()
				return in.fail(core.Errorf("", core.Cancelled, "the client is gone"))
			}
			if events > 0 { // counted after it is on its way
				if !sent {
					sent = true
					m.streams.WithLabelValues(in.label).Inc()
				}
				last = in.count(&sp, events, last)
			}
		}
		switch {
		case sp.ending == whole:
			drain(body, cancel)
			return nil
		case sp.ending == failed:
			in.problem = core.Internal // in the worker's own words, which may have the prompt
			m.broken.WithLabelValues("worker_error").Inc()
			cancel()
			return http.ErrAbortHandler
		case readErr == nil:
		case in.ctx.Err() != nil:
			return in.fail(in.ended())
		case errors.Is(readErr, errEventTooLarge):
			return in.fail(core.WithHint(core.E("", core.Internal, readErr), "The worker's engine sends what is no event stream: see its log."))
		case errors.Is(readErr, io.EOF):
			if end := sp.rest(); end != nil {
				in.beginStream()
				_ = in.send(end) // where the client is gone there is nobody to tell
				return nil
			}
			return in.cutOff(sent)
		default:
			return in.cutOff(sent)
		}
	}
}

// cutOff is the end of a stream whose worker is gone: the next worker is asked where the client has seen nothing of the answer.
func (in *inference) cutOff(sent bool) error {
	if !sent {
		return &unanswered{in.lost()}
	}
	in.g.o.Router.Failed(in.worker)
	in.g.workersUp.drop(in.worker)
	in.g.log.Warn("worker lost under a stream", "request", in.w.id, "worker", in.worker.ID, "hive", in.worker.Hive, "model", in.worker.Model)
	return in.fail(in.lost())
}

// count puts the events of one read into the metrics and returns when the last token came.
func (in *inference) count(sp *splitter, events int, last time.Time) time.Time {
	m, now := in.g.metrics, time.Now()
	m.events.Add(float64(events))
	in.events += int64(events)
	if !sp.token {
		return last
	}
	if last.IsZero() {
		in.firstToken = now.Sub(in.start)
		m.ttft.Observe(in.firstToken.Seconds())
		events--
		last = now
	}
	each := now.Sub(last).Seconds() / float64(max(events, 1))
	for range events {
		m.interToken.Observe(each)
	}
	return now
}

// drain reads what comes after [DONE], which must be nothing: then the connection can be used again. Otherwise the caller closes it unread.
func drain(body io.Reader, cancel context.CancelFunc) {
	timer := time.AfterFunc(drainTime, cancel)
	defer timer.Stop()
	_, _ = body.Read(make([]byte, 1))
}
