package core

// Candidate is a worker that can answer a request, with the reason it was chosen.
type Candidate struct {
	Worker Worker
	Reason string // short, for the x-rbee-route header: "least busy of 2"
}
