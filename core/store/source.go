package store

import (
	"context"
	"errors"
	"io"

	"github.com/rbee-project/rbee/core"
)

// Source is one place that a file's bytes can be had from: its origin, another hive, a catalog
// plugin.
//
// A transfer has one source at a time and may change it in the middle, at any byte: what the first
// has brought is kept. What an error of a source means is said by its kind:
//
//   - core.Conflict: the file has another version there than before. What this source has brought
//     is dropped, and it is asked anew, a few times.
//   - core.Integrity: the bytes are wrong. What this source has brought is dropped, and the next
//     source is asked.
//   - anything else: what it has brought is kept, and the next source is asked. A source that can
//     try again by itself has done so.
type Source interface {
	// Name says to people where the bytes come from, such as "huggingface.co". It holds no secret.
	Name() string
	// Connections returns how many calls of Fetch help at the same time, 1 or more. It is looked at
	// again whenever one begins: a source that finds out that ranges are not to be had says 1 from
	// then on.
	Connections() int
	// Fetch writes the file's bytes from offset from on into w, in order. It is over when it has
	// written those before to, or when w returns ErrEnough; it may write more than was asked for,
	// and w takes what it can use. to is -1 if the file's size is not known: to its end. A Write
	// that fails ends the Fetch. Calls may be concurrent.
	Fetch(ctx context.Context, from, to int64, w io.Writer) error
}

// Versioned is a Source that can tell one version of its file from another, by an ETag for example.
type Versioned interface {
	Source
	// Version returns what the source calls the version that it serves; empty: not known (yet), or
	// it has no names for versions.
	Version() string
	// Expect is called before the first Fetch if bytes of an earlier attempt are to be used: if the
	// file has another version, Fetch fails as core.Conflict.
	Expect(version string)
	// Origin tells this source from others in the notes of a transfer: the same for the same
	// address, whatever the process. It holds no secret.
	Origin() string
}

// Sources gives the sources of one file, one after the other. Its methods are called by one
// goroutine at a time.
type Sources interface {
	// Next gives the source to begin or to go on with. failed is nil at first, and then why the
	// last source was given up (core.Integrity: what it brought was wrong; do not give it again).
	// It may block, until another hive has something to offer for example. An error, or no source,
	// ends the transfer; its error is then failed, or Next's own where failed is nil.
	Next(ctx context.Context, failed error) (Source, error)
}

// Supply knows where files can be had from. It is safe for concurrent use.
type Supply interface {
	// Sources gives the sources of one file, for one transfer.
	Sources(f FileSpec) Sources
}

// ErrEnough is what a transfer's writer answers when it needs no more: the Fetch that wrote to it
// has done its duty.
var ErrEnough = errors.New("enough")

// Fetch writes the bytes of f from offset to its end into w. It is the simplest Supply: one source
// with one connection. Its errors are passed on with their kind; what it wrote before an error is
// kept for the next attempt.
type Fetch func(ctx context.Context, f FileSpec, offset int64, w io.Writer) error

// Sources is f as the only source.
func (f Fetch) Sources(spec FileSpec) Sources { return Only(f.Source("its catalog source", spec)) }

// Source is f for one file, with a name for people.
func (f Fetch) Source(name string, spec FileSpec) Source { return &fetchSource{name, f, spec} }

// SupplyFunc is a function as a Supply.
type SupplyFunc func(f FileSpec) Sources

// Sources calls the function.
func (s SupplyFunc) Sources(f FileSpec) Sources { return s(f) }

// Only gives one source after the other, each once, whatever became of the one before.
func Only(sources ...Source) Sources { return &only{left: sources} }

type only struct{ left []Source }

func (o *only) Next(context.Context, error) (Source, error) {
	if len(o.left) == 0 {
		return nil, nil
	}
	s := o.left[0]
	o.left = o.left[1:]
	return s, nil
}

type fetchSource struct {
	name  string
	fetch Fetch
	spec  FileSpec
}

func (f *fetchSource) Name() string   { return f.name }
func (*fetchSource) Connections() int { return 1 }
func (f *fetchSource) Fetch(ctx context.Context, from, _ int64, w io.Writer) error {
	if f.fetch == nil {
		return core.Errorf(core.Internal, "there is nobody to fetch it")
	}
	return f.fetch(ctx, f.spec, from, w)
}

var (
	_ Supply = Fetch(nil)
	_ Supply = SupplyFunc(nil)
	_ Source = (*fetchSource)(nil)
)
