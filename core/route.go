package core

import "time"

// Candidate is a worker that can answer a request, with the reason it was chosen.
type Candidate struct {
	Worker Worker
	Reason string // short, for the x-rbee-route header: "least busy of 2"
}

// RouteRefusal says why a worker was not asked.
type RouteRefusal struct {
	Worker string `json:"worker"` // Worker.ID
	Reason string `json:"reason"` // for people: "is retiring"
}

// RouteRecord is how one inference request was routed, as the queen that took it remembers it. It
// holds nothing of the request's content.
type RouteRecord struct {
	RequestID  string           `json:"request_id"`
	At         time.Time        `json:"at"`
	Path       string           `json:"path"`  // "/v1/chat/completions"
	Model      string           `json:"model"` // Model.ID; where no worker of it was found, what was asked for, at most 128 characters
	Stream     bool             `json:"stream"`
	Waited     Duration         `json:"waited"`               // until there was a worker to ask
	WaitedFor  []string         `json:"waited_for,omitempty"` // what for, in order, for people; at most 16
	Candidates []RouteCandidate `json:"candidates"`           // the workers that could answer, best first
	Refused    []RouteRefusal   `json:"refused"`              // the model's other workers; at most 32 of them
	Attempts   []RouteAttempt   `json:"attempts"`             // the workers that were asked, in order
	State      RouteState       `json:"state"`
	Status     int              `json:"status"`            // of the HTTP answer; 0: none yet, or the client was gone
	Problem    Kind             `json:"problem,omitempty"` // why it failed
	FirstToken Duration         `json:"first_token"`       // after At; 0: no token came, or the answer was no stream
	Took       Duration         `json:"took"`              // to its end; 0 while it runs
	Events     int64            `json:"events"`            // of the stream that were passed on
	Tokens     int64            `json:"tokens"`            // that were generated, as the worker says, else about
}

// RouteState is how far a routed request is.
type RouteState string

// The states of a routed request.
const (
	RouteRunning  RouteState = "running"
	RouteAnswered RouteState = "answered"
	RouteFailed   RouteState = "failed"
)

// RouteCandidate is a worker that could answer a request, with what was known of it then.
type RouteCandidate struct {
	Worker string `json:"worker"` // Worker.ID
	Hive   string `json:"hive"`   // Hive.ID
	Device string `json:"device"`
	Reason string `json:"reason"` // of its place
	Active int    `json:"active"`
	Queued int    `json:"queued"`
	Slots  int    `json:"slots"`
}

// RouteAttempt is one try to have a worker answer.
type RouteAttempt struct {
	Worker  string   `json:"worker"` // Worker.ID
	Hive    string   `json:"hive"`   // Hive.ID
	Took    Duration `json:"took"`
	Problem Kind     `json:"problem,omitempty"` // why it gave no answer that counts; empty: it answered
}

// WorkerRoutes is what the queen that is asked has sent to one start of a worker since it began.
type WorkerRoutes struct {
	Requests int64          `json:"requests"`
	Failures int64          `json:"failures"` // of those
	Recent   []RouteFailure `json:"recent"`   // the latest failures, newest first
}

// RouteFailure is a request that a worker did not answer.
type RouteFailure struct {
	At        time.Time `json:"at"`
	RequestID string    `json:"request_id"`
	Problem   Kind      `json:"problem"`
}

// WorkerDetails is an active worker with what the queen that is asked alone knows of it.
type WorkerDetails struct {
	Worker
	Routes WorkerRoutes `json:"routes"`
}
