package core

// RouteRequest is what a queen must know of an inference request to choose a worker.
type RouteRequest struct {
	RequestID string
	Model     string // as the client wrote it: an id or an alias
}

// Candidate is a worker that can answer a request, with the reason it was chosen.
type Candidate struct {
	Worker Worker
	Reason string // short, for the x-rbee-route header: "least busy of 2"
}
