//go:build !rbee_fault_stale_reads

package registry

// staleReads is off in every build meant for use.
const staleReads = false
