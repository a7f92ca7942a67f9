package store

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// unpackLimits bound the contents of an archive.
type unpackLimits struct {
	entries   int
	bytes     int64 // total bytes of the uncompressed archive
	nameBytes int
	depth     int
}

var defaultLimits = unpackLimits{entries: 20_000, bytes: 16 << 30, nameBytes: 1 << 10, depth: 16}

const archiveHint = "Nothing of it was unpacked. It is not an archive that rbee takes an engine from: choose another version or another source."

func badArchive(format string, args ...any) error {
	return core.Errorf(core.Integrity, "the archive "+format, args...).Hint(archiveHint)
}

// archive is a .tar.gz with a verified digest.
type archive struct {
	file io.ReaderAt
	size int64
	// prefix is cut off the names of the entries below it, which alone are unpacked. It is empty or
	// ends with a slash.
	prefix string
	limits unpackLimits
}

// walk reads the whole archive, refuses it if any entry is forbidden, and calls each for the files
// below the prefix. name is relative to the prefix and safe: it has no empty, . or .. element. All
// names differ, even ignoring case.
func (a archive) walk(ctx context.Context, each func(name string, h *tar.Header, r io.Reader) error) error {
	z, err := gzip.NewReader(contextReader{ctx, io.NewSectionReader(a.file, 0, a.size)})
	if err != nil {
		return a.readError(ctx, err)
	}
	bounded := &io.LimitedReader{R: z, N: a.limits.bytes + 1}
	tr := tar.NewReader(bounded)
	seen := map[string]bool{} // lower-case path → whether it is a folder
	for n := 1; ; n++ {
		h, err := tr.Next()
		if bounded.N <= 0 {
			return a.tooLarge()
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return a.readError(ctx, err)
		}
		if n > a.limits.entries {
			return core.Errorf(core.TooLarge, "the archive has more than %d entries", a.limits.entries).Hint(archiveHint)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue // only a comment
		}
		name, err := a.check(h, seen)
		if err != nil {
			return err
		}
		inside, ok := strings.CutPrefix(name, a.prefix)
		if !ok || inside == "" || h.Typeflag == tar.TypeDir {
			continue
		}
		if err := each(inside, h, tr); err != nil {
			if bounded.N <= 0 {
				return a.tooLarge()
			}
			return err
		}
	}
	// Read to the end, so that the compression's checksum is verified, too.
	if _, err := io.Copy(io.Discard, bounded); err != nil {
		return a.readError(ctx, err)
	}
	if bounded.N <= 0 {
		return a.tooLarge()
	}
	return nil
}

func (a archive) tooLarge() error {
	return core.Errorf(core.TooLarge, "the archive unpacks to more than %s", humanBytes(a.limits.bytes)).Hint(archiveHint)
}

func (a archive) readError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return badArchive("cannot be read as .tar.gz: %w", err)
}

// check refuses every entry that is not a plain file or folder with a harmless, new name, anywhere
// in the archive.
func (a archive) check(h *tar.Header, seen map[string]bool) (string, error) {
	name := strings.TrimSuffix(strings.TrimPrefix(h.Name, "./"), "/")
	if h.Typeflag == tar.TypeDir && (name == "" || name == ".") {
		return "", nil
	}
	if len(name) > a.limits.nameBytes {
		return "", badArchive("has an entry with a name of %d bytes", len(name))
	}
	if !fs.ValidPath(name) || name == "." || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' || r == ':' }) {
		return "", badArchive("has an entry with the unsafe name %q", h.Name)
	}
	if strings.Count(name, "/") >= a.limits.depth {
		return "", badArchive("has an entry nested more than %d deep: %q", a.limits.depth, h.Name)
	}
	if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir {
		return "", badArchive("has the entry %q, which is neither a file nor a folder (links and devices are not taken)", h.Name)
	}
	if h.Size < 0 {
		return "", badArchive("has the entry %q with a negative size", h.Name)
	}
	key := strings.ToLower(name)
	isDir := h.Typeflag == tar.TypeDir
	if wasDir, twice := seen[key]; twice && (!wasDir || !isDir) {
		return "", badArchive("has the entry %q twice", h.Name)
	}
	for parent := path.Dir(key); parent != "."; parent = path.Dir(parent) {
		wasDir, known := seen[parent]
		if known && !wasDir {
			return "", badArchive("has the entry %q below a file", h.Name)
		}
		if known {
			break
		}
		seen[parent] = true
	}
	seen[key] = isDir
	return name, nil
}

// measure reads the archive once without writing anything, and returns the number and size of the
// files below the prefix.
func (a archive) measure(ctx context.Context) (files int, bytes int64, err error) {
	err = a.walk(ctx, func(_ string, h *tar.Header, _ io.Reader) error {
		files++
		bytes += h.Size
		return nil
	})
	if err == nil && files == 0 {
		err = core.Errorf(core.Invalid, "the archive has no file below %q", a.prefix).Hint(archiveHint)
	}
	return files, bytes, err
}

// unpack writes the files below the prefix into folder and returns them with their digests. It
// calls wrote with the bytes of each piece.
func (a archive) unpack(ctx context.Context, folder *os.Root, wrote func(int64)) ([]core.File, error) {
	var files []core.File
	err := a.walk(ctx, func(name string, h *tar.Header, r io.Reader) error {
		if dir := path.Dir(name); dir != "." {
			if err := folder.MkdirAll(dir, 0o700); err != nil {
				return spaceError(name, err)
			}
		}
		mode := os.FileMode(0o600)
		if h.Mode&0o100 != 0 {
			mode = 0o700
		}
		f, err := writeNew(folder, name, mode, contextReader{ctx, r}, h.Size, wrote)
		if err != nil {
			return err
		}
		files = append(files, f)
		return nil
	})
	return files, err
}

// writeNew creates a file of exactly size bytes, which must not exist yet, and flushes it to the
// disk.
func writeNew(folder *os.Root, name string, mode os.FileMode, r io.Reader, size int64, wrote func(int64)) (core.File, error) {
	f, err := folder.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return core.File{}, spaceError(name, err)
	}
	defer f.Close()
	h := newHasher(f, wrote)
	n, err := io.CopyBuffer(h, r, make([]byte, copyBuffer))
	if h.err != nil {
		return core.File{}, spaceError(name, h.err)
	}
	if err != nil {
		return core.File{}, fmt.Errorf("read %s: %w", name, err)
	}
	if n != size {
		return core.File{}, core.Errorf(core.Integrity, "%s has %d bytes and should have %d", name, n, size)
	}
	// Set the mode again: the umask may have removed bits.
	if err := f.Chmod(mode); err != nil {
		return core.File{}, err
	}
	if err := f.Sync(); err != nil {
		return core.File{}, spaceError(name, err)
	}
	return core.File{Path: name, SizeBytes: n, Digest: h.digest().String()}, nil
}
