package logstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// The pages of a bbolt file, in the machine's byte order. Each starts with its number (8 bytes),
// its kind (2), its number of elements (2), and the number of following pages that belong to it
// (4). bbolt itself trusts all of it: a page that names itself as its child makes bbolt loop
// endlessly.
const (
	pageHead    = 16
	kindBranch  = 1
	kindLeaf    = 2
	kindMeta    = 4
	elementHead = 16
	bucketHead  = 16 // head of a nested bucket in a value: number of its root page, sequence

	metaMagic = 0xED0CDAED
	// magic, version, page size, flags; root page, sequence, freelist, number of pages,
	// transaction, checksum
	metaSize = 64

	maxPageSize = 64 << 10
)

var order = binary.NativeEndian

// pages walks the pages of a file.
type pages struct {
	f    io.ReaderAt
	size uint64 // page size
	end  uint64 // number of pages
	seen map[uint64]bool
}

// checkPages returns an error unless both meta pages are intact and of two consecutive
// transactions, and the newer one leads to a tree of pages. bbolt writes one meta page at a time,
// within one sector, so that a power cut leaves each old or new, never torn.
func checkPages(f io.ReaderAt, fileSize int64) error {
	head := make([]byte, pageHead+metaSize)
	if _, err := f.ReadAt(head, 0); err != nil {
		return fmt.Errorf("read the first meta page: %w", err)
	}
	first, err := readMeta(head, 0)
	if err != nil {
		return err
	}
	if first.pageSize < pageHead+metaSize || first.pageSize > maxPageSize {
		return fmt.Errorf("its pages have %d bytes", first.pageSize)
	}
	if _, err := f.ReadAt(head, int64(first.pageSize)); err != nil { //nolint:gosec // bounded above
		return fmt.Errorf("read the second meta page: %w", err)
	}
	second, err := readMeta(head, 1)
	if err != nil {
		return err
	}
	newer := first
	if second.txid > first.txid {
		newer = second
	}
	if first.pageSize != second.pageSize || max(first.txid, second.txid)-min(first.txid, second.txid) != 1 {
		return fmt.Errorf("its meta pages are of the transactions %d and %d", first.txid, second.txid)
	}
	p := &pages{f: f, size: newer.pageSize, end: newer.pages, seen: map[uint64]bool{}}
	if p.end > uint64(max(fileSize, 0))/p.size {
		return errors.New("its end is missing")
	}
	return p.walk(newer.root)
}

type meta struct{ pageSize, root, pages, txid uint64 }

func readMeta(p []byte, number uint64) (meta, error) {
	m := p[pageHead:]
	h := fnv.New64a()
	_, _ = h.Write(m[:metaSize-8]) // a hash never returns an error
	if order.Uint32(m) != metaMagic || h.Sum64() != order.Uint64(m[metaSize-8:]) || order.Uint64(p) != number || order.Uint16(p[8:]) != kindMeta {
		return meta{}, fmt.Errorf("meta page %d is damaged", number)
	}
	return meta{pageSize: uint64(order.Uint32(m[8:])), root: order.Uint64(m[16:]), pages: order.Uint64(m[40:]), txid: order.Uint64(m[48:])}, nil
}

// walk checks a page and its subtree.
func (p *pages) walk(number uint64) error {
	if number < 2 || number >= p.end {
		return fmt.Errorf("page %d is not one of its %d", number, p.end)
	}
	head := make([]byte, pageHead)
	if _, err := p.f.ReadAt(head, int64(number*p.size)); err != nil { //nolint:gosec // within the file
		return err
	}
	more := uint64(order.Uint32(head[12:]))
	if order.Uint64(head) != number || more >= p.end-number {
		return fmt.Errorf("page %d has a damaged head", number)
	}
	for n := number; n <= number+more; n++ {
		if p.seen[n] {
			return fmt.Errorf("page %d is in use twice", n)
		}
		p.seen[n] = true
	}
	b := make([]byte, (more+1)*p.size)
	if _, err := p.f.ReadAt(b, int64(number*p.size)); err != nil { //nolint:gosec // within the file
		return err
	}
	if err := p.elements(b); err != nil {
		return fmt.Errorf("page %d: %w", number, err)
	}
	return nil
}

// elements checks the elements of a page, which may be nested in a value.
func (p *pages) elements(b []byte) error {
	if len(b) < pageHead {
		return errors.New("it is too short")
	}
	kind, count := order.Uint16(b[8:]), int(order.Uint16(b[10:]))
	if kind != kindLeaf && (kind != kindBranch || count == 0) || pageHead+count*elementHead > len(b) {
		return errors.New("it has a damaged head")
	}
	var last []byte
	for i := range count {
		at := uint64(pageHead + i*elementHead)
		e := b[at:]
		if kind == kindBranch {
			key, err := part(b, at+uint64(order.Uint32(e)), uint64(order.Uint32(e[4:])))
			if err == nil && i > 0 && bytes.Compare(last, key) >= 0 {
				err = errors.New("its keys are not in order")
			}
			if err == nil {
				err = p.walk(order.Uint64(e[8:]))
			}
			if err != nil {
				return err
			}
			last = key
			continue
		}
		start, keySize, valueSize := at+uint64(order.Uint32(e[4:])), uint64(order.Uint32(e[8:])), uint64(order.Uint32(e[12:]))
		pair, err := part(b, start, keySize+valueSize)
		if err != nil {
			return err
		}
		key, value := pair[:keySize], pair[keySize:]
		if i > 0 && bytes.Compare(last, key) >= 0 {
			return errors.New("its keys are not in order")
		}
		last = key
		switch flags := order.Uint32(e); {
		case flags > 1:
			return fmt.Errorf("an element has the flags %d", flags)
		case flags == 0:
		case len(value) < bucketHead:
			return errors.New("a bucket is too short")
		case order.Uint64(value) != 0:
			if err := p.walk(order.Uint64(value)); err != nil {
				return err
			}
		default:
			if err := p.elements(value[bucketHead:]); err != nil {
				return fmt.Errorf("a bucket within it: %w", err)
			}
		}
	}
	return nil
}

func part(b []byte, start, size uint64) ([]byte, error) {
	if start > uint64(len(b)) || size > uint64(len(b))-start {
		return nil, errors.New("an element is beyond its end")
	}
	return b[start : start+size], nil
}
