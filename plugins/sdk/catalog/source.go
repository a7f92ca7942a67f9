// Package catalog is the contract of a catalog source: a plugin that finds models or engine
// libraries and fetches their files.
package catalog

import (
	"context"
	"io"

	"github.com/rbee-project/rbee/plugins/sdk"
)

// Source is the interface that the author of a catalog source implements. Methods may be called
// concurrently.
//
// A reference is the text after the source's name and the colon: for "npm:@scope/pkg@1.0.0" the
// source "npm" gets "@scope/pkg@1.0.0".
type Source interface {
	sdk.Plugin
	// Search emits the matches of the query, best first, until there are no more, the query's limit
	// is reached or emit fails.
	Search(ctx context.Context, q Query, emit func(Item) error) error
	// Resolve returns the files that a reference stands for, with sizes and digests. A reference
	// that does not exist is ErrNotFound.
	Resolve(ctx context.Context, ref string) (Manifest, error)
	// Fetch writes the bytes of a file from offset to its end. The host checks size and digest.
	Fetch(ctx context.Context, f File, offset int64, w io.Writer) error
}

// Capabilities of a source, for sdk.Info.
const (
	// CapabilityURL says that files of the source may have a URL.
	CapabilityURL = "url"
)

// ItemKind is the kind of a catalog item.
type ItemKind string

// The kinds of item.
const (
	KindModel  ItemKind = "model"
	KindEngine ItemKind = "engine"
)

// Query asks a source for items.
type Query struct {
	Text  string   // empty: everything
	Kind  ItemKind // empty: every kind
	Limit int      // 0: the source's choice
	// Exact means that Text is a whole name as a person typed it. A source on a network sends no
	// request for a text that cannot be one of its names.
	Exact bool
}

// Item is one thing a source offers.
type Item struct {
	Ref  string // without the source's name
	Kind ItemKind
	// Name is what people call the item; a model with a bare Name can be used without naming the
	// source.
	Name      string
	Summary   string // one line
	SizeBytes int64  // 0: unknown
	License   string
}

// Manifest lists the files that a reference stands for.
type Manifest struct {
	Ref string // exact: resolving it again gives the same files
	// Name is the default local name. A name that other sources may also use includes its origin:
	// "hf.co/org/repo:Q4_K_M". It consists of letters, digits and . _ -, in parts separated by
	// slashes, with a tag after a colon; any other character becomes a dash.
	Name    string
	Kind    ItemKind
	Version string // the item's version, if it has one
	License string
	Files   []File // at least one; a model's first file is the GGUF to load
	// Notes are lines for the person who made the request, for example which quantisation was
	// chosen and why. The host shows them in the job.
	Notes []string
}

// File is one file of a manifest.
type File struct {
	Ref       string // the manifest's exact reference
	Path      string // slash-separated, relative, no ".."
	SizeBytes int64  // 0: unknown
	// Digest is "sha256:<hex>", "sha512:<hex>", or empty if the origin publishes none.
	Digest string
	// Locator is the source's own way to find the file again in Fetch. It is opaque to the host,
	// which may keep it on disk, so it must hold no credential.
	Locator string
	// URL is where the host may fetch the bytes itself over HTTP, several ranges at once. If it is
	// empty, the host calls Fetch, which must work in any case. URL appears in messages, so it must
	// hold no credential.
	URL string
	// Header is sent with requests for URL to its own origin (scheme, host and port), and never
	// after a redirect to another. It may hold a credential: the host never writes it down, and
	// calls Resolve for a new one.
	Header map[string]string
}
