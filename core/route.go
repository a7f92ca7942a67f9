package core

import "time"

// Candidate is a worker that can answer a request, with the reason for its rank.
type Candidate struct {
	Worker Worker
	Reason string // short, for the x-rbee-route header: "least busy of 2"
}

// RouteRefusal tells why a worker was not asked.
type RouteRefusal struct {
	Worker string `json:"worker"` // Worker.ID
	Reason string `json:"reason"` // for people: "is retiring"
}

// RouteRecord is how one inference request was routed, as recorded by the queen that received it.
// It holds no content of the request.
type RouteRecord struct {
	RequestID  string           `json:"request_id"`
	At         time.Time        `json:"at"`
	Path       string           `json:"path"`  // "/v1/chat/completions"
	Model      string           `json:"model"` // Model.ID; if no worker was found, the requested model, at most 128 characters
	Stream     bool             `json:"stream"`
	Waited     Duration         `json:"waited"`               // until a worker was available
	WaitedFor  []string         `json:"waited_for,omitempty"` // what it waited for, in order, for people; at most 16
	Candidates []RouteCandidate `json:"candidates"`           // the workers that could answer, best first
	Refused    []RouteRefusal   `json:"refused"`              // the model's other workers; at most 32
	Attempts   []RouteAttempt   `json:"attempts"`             // the workers that were asked, in order
	State      RouteState       `json:"state"`
	Status     int              `json:"status"`            // HTTP status of the answer; 0: none yet, or the client disconnected
	Problem    Kind             `json:"problem,omitempty"` // why it failed
	FirstToken Duration         `json:"first_token"`       // after At; 0: no token was received, or the answer was not streamed
	Took       Duration         `json:"took"`              // time to its end; 0 while it runs
	Events     int64            `json:"events"`            // forwarded events of the stream
	Tokens     int64            `json:"tokens"`            // generated tokens as the worker reports them, else an estimate
}

// RouteState is the progress of a routed request.
type RouteState string

// The states of a routed request.
const (
	RouteRunning  RouteState = "running"
	RouteAnswered RouteState = "answered"
	RouteFailed   RouteState = "failed"
)

// RouteCandidate is a worker that could answer a request, with what was known about it then.
type RouteCandidate struct {
	Worker string `json:"worker"` // Worker.ID
	Hive   string `json:"hive"`   // Hive.ID
	Device string `json:"device"`
	Reason string `json:"reason"` // for its rank
	Active int    `json:"active"`
	Queued int    `json:"queued"`
	Slots  int    `json:"slots"`
}

// RouteAttempt is one attempt to get an answer from a worker.
type RouteAttempt struct {
	Worker  string   `json:"worker"` // Worker.ID
	Hive    string   `json:"hive"`   // Hive.ID
	Took    Duration `json:"took"`
	Problem Kind     `json:"problem,omitempty"` // why its answer did not count; empty: it answered
}

// WorkerRoutes summarises what the queen that is asked has sent to one start of a worker.
type WorkerRoutes struct {
	Requests int64          `json:"requests"`
	Failures int64          `json:"failures"` // failed requests among those
	Recent   []RouteFailure `json:"recent"`   // the latest failures, newest first
}

// RouteFailure is a request that a worker failed to answer.
type RouteFailure struct {
	At        time.Time `json:"at"`
	RequestID string    `json:"request_id"`
	Problem   Kind      `json:"problem"`
}

// WorkerDetails is an active worker with what only the queen that is asked knows about it.
type WorkerDetails struct {
	Worker
	Routes WorkerRoutes `json:"routes"`
}
