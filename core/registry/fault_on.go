//go:build rbee_fault_stale_reads

package registry

// staleReads has linearizable reads skip the check whether this queen still leads. It exists to
// prove that the linearizability test finds such a fault: `make linear`.
const staleReads = true
