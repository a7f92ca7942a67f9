//go:build rbee_fault_stale_reads

package registry

// staleReads makes linearizable reads skip the check that this queen still leads. It exists to
// prove that the linearizability test finds such a fault: `make linear`.
const staleReads = true
