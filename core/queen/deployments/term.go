package deployments

import (
	"maps"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/deploy"
	"github.com/rbee-project/rbee/core/queen/placement"
)

const (
	// missingGrace is how long a known worker may be missing from its hive's reports, such as while
	// the agent restarts, before another one is started.
	missingGrace = 5 * time.Second
	// A hive that failed to start a worker rests for firstRest, and twice as long after each
	// further failure, up to lastRest.
	firstRest = 15 * time.Second
	lastRest  = 5 * time.Minute
)

// term is a leader's memory of the workers of deployments. The next leader starts empty: what
// matters is in the registry and in the jobs of the hives.
type term struct {
	seen    map[string]bool      // labels whose worker was in the registry
	missing map[string]time.Time // since when a known worker, or one whose start has ended, has been missing
	lost    map[string]bool      // labels whose worker has ended or failed to start
	rests   map[resting]rest
}

type resting struct{ deployment, hive string }

type rest struct {
	until  time.Time
	last   time.Duration
	reason string
}

func newTerm() *term {
	return &term{seen: map[string]bool{}, missing: map[string]time.Time{}, lost: map[string]bool{}, rests: map[resting]rest{}}
}

// known returns the parts that a decision needs.
func (t *term) known(now time.Time) (lost map[string]bool, rests map[string]map[string]string) {
	rests = map[string]map[string]string{}
	for at, r := range t.rests {
		if now.Before(r.until) {
			if rests[at.deployment] == nil {
				rests[at.deployment] = map[string]string{}
			}
			rests[at.deployment][at.hive] = r.reason
		}
	}
	return maps.Clone(t.lost), rests
}

// look records which workers exist. reports reports whether a hive reports its workers to this
// queen.
func (t *term) look(all []core.Deployment, v deploy.View, reports func(hive string) bool, now time.Time) {
	there := map[string]core.WorkerState{}
	for _, w := range v.Workers {
		there[w.Replica] = w.State
	}
	placed := map[string]bool{}
	for _, d := range all {
		for _, p := range d.Placed {
			label := p.Label(d.Name)
			placed[label] = true
			state, is := there[label]
			switch since, missing := t.missing[label]; {
			case is:
				t.seen[label] = true
				delete(t.missing, label)
				if state == core.WorkerReady {
					delete(t.rests, resting{d.Name, p.Hive})
				}
			case !t.seen[label] || !reports(p.Hive):
			case !missing:
				t.missing[label] = now
			case now.Sub(since) >= missingGrace:
				t.lost[label] = true
			}
		}
	}
	for label := range t.seen {
		if !placed[label] {
			delete(t.seen, label)
		}
	}
	for label := range t.missing {
		if !placed[label] {
			delete(t.missing, label)
		}
	}
	for label := range t.lost {
		if !placed[label] {
			delete(t.lost, label)
		}
	}
}

// started records the outcome of a requested start.
func (t *term) started(s deploy.Start, j core.Job, err error, now time.Time) {
	label := s.Label()
	switch {
	case err != nil && (core.KindOf(err) == core.Unavailable || core.KindOf(err) == core.Cancelled || core.KindOf(err) == core.DeadlineExceeded):
		// The hive does not answer: retry until it is down.
	case err != nil:
		t.fail(s, err.Error(), now)
	case j.State == core.JobRunning:
	case j.State == core.JobSucceeded:
		// Its hive reports the worker at once, unless it has ended since.
		if since, ok := t.missing[label]; !ok {
			t.missing[label] = now
		} else if now.Sub(since) >= placement.RegistrationPatience {
			t.lost[label] = true
		}
	default:
		reason := "its start ended as " + string(j.State)
		if j.Error != nil {
			reason = j.Error.Message
		}
		t.fail(s, reason, now)
	}
}

func (t *term) fail(s deploy.Start, reason string, now time.Time) {
	t.lost[s.Label()] = true
	at := resting{s.Deployment.Name, s.Hive}
	last := min(lastRest, max(firstRest, 2*t.rests[at].last))
	t.rests[at] = rest{until: now.Add(last), last: last, reason: reason}
}
