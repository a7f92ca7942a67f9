package core

import "time"

// Standing is what the queens last said of a machine's membership.
type Standing struct {
	Cluster string `json:"cluster"` // id
	// Problem says that the machine is not part of its cluster any more, and Hint how it joins
	// again; empty: nothing is known to be wrong.
	Problem string    `json:"problem,omitempty"`
	Hint    string    `json:"hint,omitempty"`
	Since   time.Time `json:"since,omitzero"` // when the machine was told
}
