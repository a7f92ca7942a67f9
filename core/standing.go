package core

import "time"

// Standing is what the queens last reported about a machine's membership.
type Standing struct {
	Cluster string `json:"cluster"` // id
	// Problem reports that the machine is no longer part of its cluster, and Hint how to join
	// again; empty: no problem is known.
	Problem string    `json:"problem,omitempty"`
	Hint    string    `json:"hint,omitempty"`
	Since   time.Time `json:"since,omitzero"` // when the machine learned of it
}
