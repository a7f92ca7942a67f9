//go:build !rbee_fault_stale_reads

package registry

// staleReads is off in every build that is meant to be used.
const staleReads = false
