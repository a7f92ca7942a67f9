// Package swarm fetches a file that many hives want only once from its origin: it decides which
// hive does so, and moves the bytes from hive to hive.
//
// The leading queen has a Board. A hive that wants a file sends it a Claim, and reports its
// progress with further claims; a Plan tells the hive where to fetch the bytes: from hives that
// have them, from a hive that has started to fetch them, or, for the first hive, from the origin.
// None of this is in raft. A new leader starts with an empty Board and asks the hives; without a
// leader, every hive goes to the origin.
//
// A hive reads the bytes from another hive with HTTP/1.1, over the RPC port's protocol rbee-blob/1:
// GET /v1/blobs/sha256:<hex> with a range. Bytes that have not arrived yet are sent as soon as they
// do. Why HTTP and not gRPC: a range expresses everything needed, bytes are copied from the file to
// TLS without messages in between, and net/http handles bounds and timeouts. Hives do not trust
// each other: the receiver checks the digest of the whole file.
package swarm

import (
	"encoding/hex"
	"strings"
	"time"
)

// Stage is the stage of a hive's transfer of a file.
type Stage int

// The stages. They are numbers on the wire: never renumber them.
const (
	Asking     Stage = 1 // it asks where to fetch the file
	FromHive   Stage = 2 // it fetches the file from another hive
	FromOrigin Stage = 3 // it fetches the file from the origin
	Whole      Stage = 4 // it has the whole file, verified
	Over       Stage = 5 // it gave up on the file, or lost it
)

// Claim is a hive's report about a file.
type Claim struct {
	Hive      string // node ID
	Digest    string // "sha256:<hex>"
	HaveBytes int64  // counted from the file's beginning
	Stage     Stage
	Source    string   // FromHive: node ID of the other hive
	Avoid     []string // hives that have failed this one
	NoOrigin  bool     // the origin has failed this hive
	Mute      bool     // it serves no files to other hives
}

// Plan is the answer to a Claim.
type Plan struct {
	Origin  bool     // fetch the file from the origin
	Seeders []Seeder // hives with more bytes of it, in the order in which to ask them
	// Waiting is the name of the hive that fetches the file from the origin; empty: none, or this
	// one. Without Origin and Seeders, the claimer waits for that hive.
	Waiting string
	Nobody  bool          // no other hive can help, and the origin has failed this one
	Again   time.Duration // when to claim again, at the latest
}

// Seeder is a hive to fetch a file from.
type Seeder struct {
	Hive    string // node ID
	Name    string // display name
	Address string // host:port of its RPC port
}

// ValidDigest reports whether d is "sha256:" and 64 lower-case hexadecimal digits, the only digests
// that hives exchange.
func ValidDigest(d string) bool {
	sum, ok := strings.CutPrefix(d, "sha256:")
	if !ok || len(sum) != 64 || sum != strings.ToLower(sum) {
		return false
	}
	_, err := hex.DecodeString(sum)
	return err == nil
}
