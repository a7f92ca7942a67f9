package gossip

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"io"
	"sync"
)

// Types of memberlist's messages; see its net.go.
const (
	typeCompound  = 7
	typeCompress  = 9
	typeEncrypted = 10
	typeChecksum  = 12
)

const (
	// maxFrameBytes bounds the bytes read from one stream: the state of maxMembers nodes fits.
	maxFrameBytes = 16 << 20
	// heldFrameBytes bounds the bytes of all streams that memberlist has not answered yet.
	heldFrameBytes = 48 << 20
	firstFrame     = 4 << 10 // initial size of a frame's buffer
	// maxHanded bounds the streams handed to memberlist at a time: it copies a message three times.
	maxHanded = 8
	// maxNested bounds the nesting of messages; memberlist nests them twice.
	maxNested = 4

	nonceBytes = 12
)

var errFrame = errors.New("not a message of the pool")

// opener separates the messages of key holders from all others before memberlist sees them. The
// pool's own messages are never compressed: a few compressed bytes could unpack to 40 MiB.
type opener struct {
	label []byte
	keys  func() [][]byte
}

// open decrypts a message and authenticates it together with the bytes in front of it and the
// label.
func (o opener) open(front, sealed []byte) ([]byte, error) {
	if len(sealed) < 1+nonceBytes {
		return nil, errFrame
	}
	data := append(bytes.Clone(front), o.label...)
	for _, key := range o.keys() {
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			return nil, err
		}
		if plain, err := gcm.Open(nil, sealed[1:1+nonceBytes], sealed[1+nonceBytes:], data); err == nil {
			return plain, nil
		}
	}
	return nil, errFrame
}

// check reports whether a sealed message may be passed to memberlist.
func (o opener) check(front, sealed []byte) bool {
	plain, err := o.open(front, sealed)
	return err == nil && !unpacks(plain, maxNested)
}

// unpacks reports whether a message, or one nested in it, is compressed or nested too deep.
func unpacks(plain []byte, depth int) bool {
	switch {
	case len(plain) == 0:
		return false
	case plain[0] == typeCompress, depth == 0:
		return true
	case plain[0] == typeChecksum:
		return unpacks(plain[min(5, len(plain)):], depth-1)
	case plain[0] != typeCompound || len(plain) < 2:
		return false
	}
	n := int(plain[1])
	sizes, parts := plain[2:], plain[min(2+2*n, len(plain)):]
	for i := range n {
		if len(sizes) < 2*i+2 {
			return false // memberlist refuses it
		}
		size := min(int(binary.BigEndian.Uint16(sizes[2*i:])), len(parts))
		if unpacks(parts[:size], depth-1) {
			return true
		}
		parts = parts[size:]
	}
	return false
}

// frames accounts for the memory that holds the bytes of all streams. It is safe for concurrent
// use.
type frames struct {
	mu   sync.Mutex // guards below
	held int
}

func (f *frames) take(n int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held+n > heldFrameBytes {
		return false
	}
	f.held += n
	return true
}

func (f *frames) give(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held -= n
}

// read reads the one message of a stream, behind its label, as it arrives: it does not trust the
// stated length. The caller gives back the memory taken, also after an error.
func (f *frames) read(r io.Reader) (frame []byte, took int, err error) {
	const header = 5
	var head [header]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, 0, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if head[0] != typeEncrypted || n > maxFrameBytes {
		return nil, 0, errFrame
	}
	for whole := header + int(n); len(frame) < whole; {
		size := min(max(firstFrame, 2*len(frame)), whole)
		if !f.take(size) {
			return nil, took, errFrame
		}
		took += size
		next := make([]byte, size)
		have := copy(next, frame)
		if frame == nil {
			have = copy(next, head[:])
		} else {
			f.give(len(frame)) // the frame has been copied
			took -= len(frame)
		}
		frame = next
		if _, err := io.ReadFull(r, frame[have:]); err != nil {
			return nil, took, err
		}
	}
	return frame, took, nil
}
