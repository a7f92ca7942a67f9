package store

import (
	"context"
	"errors"
	"io"

	"github.com/rbee-project/rbee/core"
)

// Source is one place to fetch a file's bytes from: its origin, another hive, a catalog plugin.
//
// A transfer uses one source at a time and may switch to another at any byte: it keeps the bytes it
// has. The kind of a source's error determines what happens:
//
//   - core.Conflict: the source has another version of the file than before. The transfer drops
//     this source's bytes and asks it again, a few times.
//   - core.Integrity: the bytes are wrong. The transfer drops this source's bytes and asks the next
//     source.
//   - anything else: the transfer keeps the bytes and asks the next source. A source that can retry
//     by itself has done so.
type Source interface {
	// Name names the source for people, such as "huggingface.co". It holds no secret.
	Name() string
	// Connections returns how many concurrent calls of Fetch help, 1 or more. The transfer calls it
	// before each start: a source that learns that ranges are not supported returns 1 from then on.
	Connections() int
	// Fetch writes the file's bytes from offset from on into w, in order. It ends when it has
	// written all bytes before to, or when w returns ErrEnough; it may write more than requested,
	// and w uses what it can. A to of -1 means up to the file's end, when its size is unknown. A
	// failed Write ends the Fetch. Calls may be concurrent.
	Fetch(ctx context.Context, from, to int64, w io.Writer) error
}

// Versioned is a Source that can tell one version of its file from another, by an ETag for example.
type Versioned interface {
	Source
	// Version returns the source's name for the version that it serves; empty if that is not known
	// yet, or if the source does not name versions.
	Version() string
	// Expect is called before the first Fetch if bytes of an earlier attempt are to be reused:
	// Fetch then fails with core.Conflict for any other version.
	Expect(version string)
	// Origin identifies this source in a transfer's journal: the same address has the same origin
	// in every process. It holds no secret.
	Origin() string
}

// Sources returns the sources of one file, one after the other. One goroutine at a time calls its
// methods.
type Sources interface {
	// Next returns the next source. failed is nil at first, and then the error of the last source
	// (core.Integrity: its bytes were wrong; do not return it again). It may block, for example
	// until another hive has something to offer. An error, or no source, ends the transfer; its
	// error is then failed, or Next's own if failed is nil.
	Next(ctx context.Context, failed error) (Source, error)
}

// Supply knows the sources of files. It is safe for concurrent use.
type Supply interface {
	// Sources returns the sources of one file, for one transfer.
	Sources(f FileSpec) Sources
}

// ErrEnough is returned by a transfer's writer that needs no more: the Fetch that wrote to it is
// done.
var ErrEnough = errors.New("enough")

// Fetch writes the bytes of f from offset to its end into w. It is the simplest Supply: one source
// with one connection. Its errors keep their kind; the next attempt keeps the bytes it wrote before
// an error.
type Fetch func(ctx context.Context, f FileSpec, offset int64, w io.Writer) error

// Sources returns f as the only source.
func (f Fetch) Sources(spec FileSpec) Sources { return Only(f.Source("its catalog source", spec)) }

// Source returns f as a source of one file; name is shown to people.
func (f Fetch) Source(name string, spec FileSpec) Source { return &fetchSource{name, f, spec} }

// SupplyFunc adapts a function to a Supply.
type SupplyFunc func(f FileSpec) Sources

// Sources calls the function.
func (s SupplyFunc) Sources(f FileSpec) Sources { return s(f) }

// Only returns one source after the other, each once, whether or not the one before failed.
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
		return core.Errorf(core.Internal, "no source to fetch it from")
	}
	return f.fetch(ctx, f.spec, from, w)
}

var (
	_ Supply = Fetch(nil)
	_ Supply = SupplyFunc(nil)
	_ Source = (*fetchSource)(nil)
)
