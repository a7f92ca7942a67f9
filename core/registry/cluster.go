package registry

import "github.com/rbee-project/rbee/core"

// Alone reports whether this agent is in no cluster.
func (r *Registry) Alone() bool { return r.self == nil }

// Cluster returns what the registry says of the cluster. Errors: Unsupported for an agent that is
// in none; Unavailable before the registry has it.
func (r *Registry) Cluster() (core.Cluster, error) {
	if r.Alone() {
		return core.Cluster{}, ErrAlone()
	}
	c, ok := r.View().Cluster(nil)
	if !ok {
		return c, core.Errorf(core.Unavailable, "the registry of this cluster is not there yet").Hint("Try again in a moment; if it stays so, look at the log of the first queen.")
	}
	return c, nil
}

// ErrAlone returns the error of an agent that is in no cluster, where it is asked about one.
func ErrAlone() error {
	return core.Errorf(core.Unsupported, "this agent is in no cluster").Hint(
		"Stop it, make a cluster with `rbee cluster init`, and start it again; its models and its registry stay.")
}

// ErrNoCAKey returns the error of a cluster whose certificates are made elsewhere, where it is
// asked for one.
func ErrNoCAKey() error {
	return core.Errorf(core.Unsupported, "the key of this cluster's CA is not in its registry, so that no machine can join by token").Hint(
		"Make the certificate of the machine where the CA's key is, with `rbee tls cert create`, and name its files in tls { … }.")
}
