// Package swarm brings a file that many hives want from its origin once: who brings it, and the
// bytes from hive to hive.
//
// The leading queen has a Board. A hive that wants a file asks it with a Claim, and says with
// further ones how far it is; a Plan tells it from where to take the bytes: from hives that have
// them, from a hive that has begun to fetch them, or from the origin, where it is the first. None
// of it is in raft. A new leader begins with an empty Board and asks the hives; without a leader
// every hive goes to the origin.
//
// A hive takes the bytes from another one by HTTP/1.1, over the RPC port's protocol rbee-blob/1:
// GET /v1/blobs/sha256:<hex> with a range. What is not there yet is sent as soon as it is. Why HTTP
// and not gRPC: a range is all there is to say, bytes are copied from the file to TLS without
// messages between, and net/http bounds and times out the rest. No hive believes another one: the
// receiver checks the digest of the whole file.
package swarm

import (
	"encoding/hex"
	"strings"
	"time"
)

// Stage is what a hive does about a file.
type Stage int

// The stages. They are numbers on the wire: never renumber one.
const (
	Asking     Stage = 1 // it wants to be told where to take it from
	FromHive   Stage = 2 // it takes it from another hive
	FromOrigin Stage = 3 // it takes it from the origin
	Whole      Stage = 4 // it has all of it, checked
	Over       Stage = 5 // it has given up, or lost it
)

// Claim is what a hive says of a file.
type Claim struct {
	Hive      string // node id
	Digest    string // "sha256:<hex>"
	HaveBytes int64  // from the file's beginning
	Stage     Stage
	Source    string   // FromHive: node id of the other hive
	Avoid     []string // hives that have failed this one
	NoOrigin  bool     // the origin has failed this hive
	Mute      bool     // it gives no files to other hives
}

// Plan is the answer to a Claim.
type Plan struct {
	Origin  bool     // take it from the origin
	Seeders []Seeder // that have more of it, the one to ask first first
	// Waiting is the hive that fetches it from the origin, by name; empty: none, or this one.
	// Without Origin and Seeders the answer is to wait for it.
	Waiting string
	Nobody  bool          // no other hive can help, and the origin has failed this one
	Again   time.Duration // when to claim again, at the latest
}

// Seeder is a hive to take a file from.
type Seeder struct {
	Hive    string // node id
	Name    string // for people
	Address string // host:port of its RPC port
}

// ValidDigest reports whether d is "sha256:" and 64 lower-case hexadecimal digits: the only digests
// that files are known by among hives.
func ValidDigest(d string) bool {
	sum, ok := strings.CutPrefix(d, "sha256:")
	if !ok || len(sum) != 64 || sum != strings.ToLower(sum) {
		return false
	}
	_, err := hex.DecodeString(sum)
	return err == nil
}
