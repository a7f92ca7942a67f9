package store

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"regexp"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/modelname"
)

var (
	workerType    = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)
	workerVersion = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._+-]{0,127}$`)
)

// ValidWorkerType reports whether typ can name a worker type in a store.
func ValidWorkerType(typ string) bool { return workerType.MatchString(typ) }

// A model's record is a file named after the model's id. Two characters that no id contains replace
// those that file names cannot contain on every system.
var (
	idToFile = strings.NewReplacer("/", "+", ":", "=")
	fileToID = strings.NewReplacer("+", "/", "=", ":")
)

// recordName returns the path of a model's record.
func recordName(id string) string { return path.Join(modelsDir, idToFile.Replace(id)+recordSuffix) }

// recordID returns the id of the model whose record has that file name.
func recordID(file string) (id string, ok bool) {
	name, ok := strings.CutSuffix(file, recordSuffix)
	if id = fileToID.Replace(name); !ok || !modelname.Valid(id) || idToFile.Replace(id) != name {
		return "", false
	}
	return id, true
}

const recordSuffix = ".json"

func checkBinaryName(typ, version string) error {
	if !workerType.MatchString(typ) {
		return core.Errorf(core.Invalid, "%q cannot be a worker type: use up to 32 small letters, digits and dashes", typ)
	}
	if !workerVersion.MatchString(version) || strings.Contains(version, "..") {
		return core.Errorf(core.Invalid, "%q cannot be a version: use up to 128 letters, digits and . _ + -", version)
	}
	return nil
}

// plainName reports whether s names a direct entry of a folder: no separator, not hidden, not the
// folder or its parent.
func plainName(s string) bool {
	return fs.ValidPath(s) && s != "." && len(s) <= 255 && !strings.ContainsFunc(s, func(r rune) bool { return r == '/' || r == '\\' || r == ':' || r < ' ' || r == 0x7f })
}

// digest is a file's checksum. It holds bytes, so that untrusted text never becomes a path.
type digest struct {
	algorithm string // "sha256" or "sha512"; empty: none
	sum       [sha512.Size]byte
}

func sha256Digest(sum []byte) digest {
	d := digest{algorithm: "sha256"}
	copy(d.sum[:], sum)
	return d
}

func (d digest) bytes() []byte {
	if d.algorithm == "sha256" {
		return d.sum[:sha256.Size]
	}
	return d.sum[:]
}

// String returns the digest as "sha256:<hex>".
func (d digest) String() string {
	if d.algorithm == "" {
		return ""
	}
	return d.algorithm + ":" + hex.EncodeToString(d.bytes())
}

// fileName returns the digest as the name of a file: "sha256-<hex>".
func (d digest) fileName() string { return d.algorithm + "-" + hex.EncodeToString(d.bytes()) }

// parseDigest reads "sha256:<64 hex digits>" or "sha512:<128 hex digits>", in lower case. An empty
// text returns the zero digest.
func parseDigest(text string) (digest, error) {
	if text == "" {
		return digest{}, nil
	}
	algorithm, hexSum, _ := strings.Cut(text, ":")
	size := 0
	switch algorithm {
	case "sha256":
		size = sha256.Size
	case "sha512":
		size = sha512.Size
	}
	sum, err := hex.DecodeString(hexSum)
	if err != nil || size == 0 || len(sum) != size || hexSum != strings.ToLower(hexSum) {
		return digest{}, core.Errorf(core.Invalid, "%q is not a digest", text).Hint(
			"A digest is sha256: with 64 or sha512: with 128 hexadecimal digits in small letters.")
	}
	d := digest{algorithm: algorithm}
	copy(d.sum[:], sum)
	return d, nil
}

// humanBytes formats n for people: "1.5 GiB".
func humanBytes(n int64) string {
	const units = "KMGTPE" // enough for any int64
	if n < 1<<10 {
		return fmt.Sprintf("%d bytes", n)
	}
	v, i := float64(n)/(1<<10), 0
	for v >= 1<<10 {
		v /= 1 << 10
		i++
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}

// hasher writes to a file, hashes what it writes, and distinguishes a failed write from a failed
// read.
type hasher struct {
	w     io.Writer
	sum   hash.Hash
	wrote func(int64)
	err   error
}

func newHasher(w io.Writer, wrote func(int64)) *hasher {
	return &hasher{w: w, sum: sha256.New(), wrote: wrote}
}

func (h *hasher) Write(b []byte) (int, error) {
	n, err := h.w.Write(b)
	_, _ = h.sum.Write(b[:n]) // hashes do not fail
	h.wrote(int64(n))
	h.err = err
	return n, err
}

func (h *hasher) digest() digest { return sha256Digest(h.sum.Sum(nil)) }
