package llamacpp

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"iter"
	"os"
	"runtime"
	"slices"
	"syscall"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/batch"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/native"
)

// A state file holds what a worker has read of conversations, for a later worker of the same model:
//
//	magic         8 bytes
//	fingerprint   32 bytes: of all that the states depend on
//	records       each: 1, the number of tokens and the tokens, the spelling of the adapters, the
//	              floor, the state
//	end           0
//	checksum      SHA-256 of all before it
//
// Numbers are little-endian uint32, lengths stand before texts and states. The engine takes for
// granted what it is given as a state, so nothing of a file is used before its checksum is right.

const (
	keepMagic = "rbeekep1"
	// keepMost bounds the records of a file; keepAdapters bounds the encoded adapters, in bytes.
	keepMost     = 4096
	keepAdapters = 4096
)

// keepFingerprint returns a hash of everything that states depend on: a worker can only use states
// with its own fingerprint. It returns false when the host does not identify the model.
func keepFingerprint(modelDigest string, f Flavour, conf config, m *model, limit int, list adapters) ([sha256.Size]byte, bool) {
	type file struct {
		Path     string
		Scale    float64
		Size     int64
		Modified int64
	}
	var files []file
	for _, a := range list {
		info, err := os.Stat(a.path)
		if err != nil {
			return [sha256.Size]byte{}, false
		}
		files = append(files, file{a.path, a.scale, info.Size(), info.ModTime().UnixNano()})
	}
	text, err := json.Marshal([]any{
		1, native.Version(), runtime.GOOS, runtime.GOARCH, f, modelDigest, len(m.pieces), m.native.EmbeddingSize(), m.native.Recurrent(), limit, conf.KVCacheType, conf.FlashAttention, files,
	})
	return sha256.Sum256(text), err == nil && modelDigest != ""
}

// keeper writes and reads one state file.
type keeper struct {
	path        string
	fingerprint [sha256.Size]byte
	limit       int64 // of the file, in bytes
	slotTokens  int
	vocab       int
}

// write writes the sequences that a scheduler keeps, as many as fit, and returns their number. If
// there are none, or on failure, it leaves no file.
func (k keeper) write(kept iter.Seq[batch.Sequence]) (n int, err error) {
	temp := k.path + ".tmp"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, fmt.Errorf("keep states: %w", err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err == nil && n > 0 {
			err = os.Rename(temp, k.path)
		}
		if err != nil || n == 0 {
			_ = os.Remove(temp) // fails harmlessly after the rename
		}
	}()
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(f, sum), 1<<16)
	_, _ = out.WriteString(keepMagic) // errors stick until Flush
	_, _ = out.Write(k.fingerprint[:])
	size := int64(len(keepMagic)) + 2*sha256.Size + 4
	for q := range kept {
		data := q.State.Data()
		need := int64(4*5) + int64(4*len(q.Tokens)) + int64(len(q.Adapters)) + int64(len(data))
		if n == keepMost || len(q.Adapters) > keepAdapters || len(q.Tokens) > k.slotTokens {
			continue
		}
		if size+need > k.limit { // a smaller one may fit
			continue
		}
		n, size = n+1, size+need
		putNumbers(out, 1, uint32(len(q.Tokens)))
		for _, t := range q.Tokens {
			putNumbers(out, uint32(t))
		}
		putNumbers(out, uint32(len(q.Adapters)))
		_, _ = out.WriteString(q.Adapters)
		putNumbers(out, uint32(q.Floor), uint32(len(data)))
		_, _ = out.Write(data)
	}
	putNumbers(out, 0)
	if err := out.Flush(); err != nil {
		return n, fmt.Errorf("keep states: %w", err)
	}
	if _, err := f.Write(sum.Sum(nil)); err != nil {
		return n, fmt.Errorf("keep states: %w", err)
	}
	return n, nil
}

func putNumbers(w *bufio.Writer, list ...uint32) {
	for _, n := range list {
		var b [4]byte
		binary.LittleEndian.PutUint32(b[:], n)
		_, _ = w.Write(b[:])
	}
}

// take reads the file and removes it in any case. It returns the sequences, most recently used
// last; none if the file does not exist. The caller frees their states.
func (k keeper) take() (list []batch.Sequence, err error) {
	f, err := os.OpenFile(k.path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	defer func() {
		err = errors.Join(err, removeKept(k.path))
		if err != nil {
			freeAll(list)
			list = nil
		}
	}()
	if err != nil {
		return nil, fmt.Errorf("read kept states: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("read kept states: %w", err)
	case !info.Mode().IsRegular():
		return nil, errors.New("read kept states: not a regular file")
	case info.Size() > k.limit:
		return nil, fmt.Errorf("read kept states: the file has %d bytes, more than keep_state_mib allows", info.Size())
	}
	r := &keepReader{keeper: k, from: bufio.NewReaderSize(f, 1<<16), sum: sha256.New(), left: info.Size()}
	if list, err = r.all(); err != nil {
		return list, fmt.Errorf("read kept states: %w", err)
	}
	slices.Reverse(list)
	return list, nil
}

// removeKept removes any file at the path of a state file.
func removeKept(path string) error {
	if path == "" {
		return nil
	}
	err := os.RemoveAll(path)
	return errors.Join(err, os.RemoveAll(path+".tmp"))
}

func freeAll(list []batch.Sequence) {
	for _, q := range list {
		q.State.Free()
	}
}

// keepReader reads a file, up to its expected size.
type keepReader struct {
	keeper

	from *bufio.Reader
	sum  hash.Hash
	left int64 // bytes left in the file
	err  error // the first error
}

var errKeepDamaged = errors.New("the file is damaged")

// fill reads exactly len(b) bytes.
func (r *keepReader) fill(b []byte) []byte {
	if r.err == nil && int64(len(b)) > r.left {
		r.err = errKeepDamaged
	}
	if r.err == nil {
		_, r.err = io.ReadFull(r.from, b)
	}
	if r.err != nil {
		clear(b)
		return b
	}
	r.left -= int64(len(b))
	_, _ = r.sum.Write(b) // never fails
	return b
}

// number reads a number of at most most.
func (r *keepReader) number(most int64) int {
	n := int64(binary.LittleEndian.Uint32(r.fill(make([]byte, 4))))
	if r.err == nil && n > most {
		r.err = errKeepDamaged
	}
	if r.err != nil {
		return 0
	}
	return int(n)
}

func (r *keepReader) all() (list []batch.Sequence, err error) {
	if string(r.fill(make([]byte, len(keepMagic)))) != keepMagic {
		return nil, cmp.Or(r.err, errors.New("the file is of another format"))
	}
	if got := r.fill(make([]byte, sha256.Size)); r.err == nil && [sha256.Size]byte(got) != r.fingerprint {
		return nil, errors.New("the file is of another model, engine or configuration")
	}
	for r.number(1) == 1 && r.err == nil {
		if len(list) == keepMost {
			return list, errKeepDamaged
		}
		q, err := r.record()
		if err != nil {
			return list, err
		}
		list = append(list, q)
	}
	want := r.sum.Sum(nil)
	if got := r.fill(make([]byte, sha256.Size)); r.err == nil && !slices.Equal(got, want) || r.left != 0 {
		return list, errKeepDamaged
	}
	return list, r.err
}

func (r *keepReader) record() (q batch.Sequence, err error) {
	tokens := r.fill(make([]byte, 4*r.number(min(int64(r.slotTokens), r.left/4))))
	for i := 0; i < len(tokens); i += 4 {
		t := binary.LittleEndian.Uint32(tokens[i:])
		if int64(t) >= int64(r.vocab) {
			return q, errKeepDamaged
		}
		q.Tokens = append(q.Tokens, token(t))
	}
	q.Adapters = string(r.fill(make([]byte, r.number(keepAdapters))))
	q.Floor = r.number(int64(len(q.Tokens)))
	size := r.number(r.left)
	if r.err != nil || size == 0 || len(q.Tokens) == 0 {
		return q, cmp.Or(r.err, errKeepDamaged)
	}
	state, err := native.NewState(size)
	if err != nil {
		return q, err
	}
	if r.fill(state.Data()); r.err != nil {
		state.Free()
		return q, r.err
	}
	q.State = state
	return q, nil
}
