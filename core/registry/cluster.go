package registry

import "github.com/rbee-project/rbee/core"

// Alone reports whether this agent belongs to no cluster.
func (r *Registry) Alone() bool { return r.self == nil }

// Cluster returns the registry's record of the cluster. Errors: Unsupported for an agent outside
// any cluster; Unavailable before the registry has the record.
func (r *Registry) Cluster() (core.Cluster, error) {
	if r.Alone() {
		return core.Cluster{}, ErrAlone()
	}
	c, ok := r.View().Cluster(nil)
	if !ok {
		return c, core.Errorf(core.Unavailable, "the registry of this cluster does not exist yet").Hint("Try again in a moment; if it stays so, look at the log of the first queen.")
	}
	return c, nil
}

// ErrAlone returns the error for a cluster operation on an agent outside any cluster.
func ErrAlone() error {
	return core.Errorf(core.Unsupported, "this agent is in no cluster").Hint(
		"Stop it, make a cluster with `rbee cluster init`, and start it again; its models and its registry stay.")
}

// ErrNoCAKey returns the error for a certificate request in a cluster whose certificates are issued
// elsewhere.
func ErrNoCAKey() error {
	return core.Errorf(core.Unsupported, "the key of this cluster's CA is not in its registry, so that no machine can join by token").Hint(
		"Make the certificate of the machine where the CA's key is, with `rbee tls cert create`, and name its files in tls { … }.")
}
