package logstore

import (
	"bytes"
	"hash/fnv"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
)

const testPage = 128 // bytes

// element is an element of a handmade page.
type element struct {
	flags      uint32
	key, value []byte
	page       uint64 // child page, in a branch
}

// pageOf returns a page of testPage bytes, or of fewer if it is nested in a value.
func pageOf(number uint64, kind uint16, size int, elements ...element) []byte {
	b := make([]byte, pageHead+len(elements)*elementHead)
	order.PutUint64(b, number)
	order.PutUint16(b[8:], kind)
	order.PutUint16(b[10:], uint16(len(elements)))
	for i, e := range elements {
		at := pageHead + i*elementHead
		start := uint32(len(b) - at)
		b = append(b, e.key...)
		b = append(b, e.value...)
		if h := b[at:]; kind == kindBranch {
			order.PutUint32(h, start)
			order.PutUint32(h[4:], uint32(len(e.key)))
			order.PutUint64(h[8:], e.page)
		} else {
			order.PutUint32(h, e.flags)
			order.PutUint32(h[4:], start)
			order.PutUint32(h[8:], uint32(len(e.key)))
			order.PutUint32(h[12:], uint32(len(e.value)))
		}
	}
	return append(b, make([]byte, max(0, size-len(b)))...)
}

func metaOf(number, root, end, txid uint64, size uint32) []byte {
	b := pageOf(number, kindMeta, testPage)
	m := b[pageHead:]
	order.PutUint32(m, metaMagic)
	order.PutUint32(m[8:], size)
	order.PutUint64(m[16:], root)
	order.PutUint64(m[40:], end)
	order.PutUint64(m[48:], txid)
	h := fnv.New64a()
	_, _ = h.Write(m[:metaSize-8])
	order.PutUint64(m[metaSize-8:], h.Sum64())
	return b
}

// bucket returns a value that is a bucket: elsewhere, or inside the value.
func bucket(root uint64, page []byte) []byte {
	return append(order.AppendUint64(nil, root), append(make([]byte, 8), page...)...)
}

// Every inconsistency between pages is found, and intact files pass, including those at the limits
// of what bbolt writes.
func TestCheckPages(t *testing.T) {
	t.Parallel()
	a, b := []byte("a"), []byte("b")
	leaf := func(number uint64, elements ...element) []byte {
		return pageOf(number, kindLeaf, testPage, elements...)
	}
	branch := func(number uint64, elements ...element) []byte {
		return pageOf(number, kindBranch, testPage, elements...)
	}
	metas := func(x, y uint64) []byte {
		return slices.Concat(metaOf(0, 2, 5, x, testPage), metaOf(1, 2, 5, y, testPage))
	}
	root := branch(2, element{key: nil, page: 3}, element{key: b, page: 4})
	damage := func(page []byte, at int, v byte) []byte {
		page = bytes.Clone(page)
		page[at] = v
		return page
	}
	for _, c := range []struct {
		name  string
		file  [][]byte
		wrong string
	}{
		{"whole", [][]byte{metas(7, 8), root, leaf(3, element{key: a}), leaf(4, element{key: a, value: b}, element{key: b})}, ""},
		{"whole, the first is newer", [][]byte{metas(8, 7), root, leaf(3), leaf(4)}, ""},
		{"an empty bucket in a value", [][]byte{metas(7, 8), root, leaf(3, element{flags: 1, value: bucket(0, pageOf(0, kindLeaf, 0))}), leaf(4)}, ""},
		{"a bucket of one empty key in a value", [][]byte{metas(7, 8), root, leaf(3, element{flags: 1, value: bucket(0, pageOf(0, kindLeaf, 0, element{}))}), leaf(4)}, ""},
		{"a bucket elsewhere", [][]byte{metas(7, 8), branch(2, element{key: a, page: 3}), leaf(3, element{flags: 1, key: a, value: bucket(4, nil)}), leaf(4)}, ""},
		{"nothing", nil, "read the first meta page"},
		{"one page", [][]byte{metaOf(0, 2, 5, 7, testPage)}, "read the second meta page"},
		{"the same transaction twice", [][]byte{metas(7, 7), root, leaf(3), leaf(4)}, "of the transactions 7 and 7"},
		{"a transaction between", [][]byte{metas(9, 7), root, leaf(3), leaf(4)}, "of the transactions 9 and 7"},
		{"two sizes of pages", [][]byte{metaOf(0, 2, 5, 7, testPage), metaOf(1, 2, 5, 8, 2*testPage), root, leaf(3), leaf(4)}, "of the transactions"},
		{"no size of a page", [][]byte{metaOf(0, 2, 5, 7, 79)}, "its pages have 79 bytes"},
		{"a page is missing", [][]byte{metas(7, 8), root, leaf(3), leaf(4)[:testPage-1]}, "its end is missing"},
		{"a page twice", [][]byte{metas(7, 8), branch(2, element{key: a, page: 3}, element{key: b, page: 3}), leaf(3), leaf(4)}, "page 3 is in use twice"},
		{"a page that is its own child", [][]byte{metas(7, 8), branch(2, element{key: a, page: 2}), leaf(3), leaf(4)}, "page 2 is in use twice"},
		{"a meta page as a child", [][]byte{metas(7, 8), branch(2, element{key: a, page: 1}), leaf(3), leaf(4)}, "page 1 is not one"},
		{"a page beyond the end", [][]byte{metas(7, 8), branch(2, element{key: a, page: 5}), leaf(3), leaf(4)}, "page 5 is not one"},
		{"another page's number", [][]byte{metas(7, 8), root, leaf(4), leaf(4)}, "page 3 has a damaged head"},
		{"more pages than there are", [][]byte{metas(7, 8), root, leaf(3), damage(leaf(4), 12, 1)}, "page 4 has a damaged head"},
		{"no child", [][]byte{metas(7, 8), branch(2), leaf(3), leaf(4)}, "page 2: it has a damaged head"},
		{"neither branch nor leaf", [][]byte{metas(7, 8), root, damage(leaf(3), 8, 16), leaf(4)}, "page 3: it has a damaged head"},
		{"more elements than fit", [][]byte{metas(7, 8), root, damage(leaf(3), 10, 8), leaf(4)}, "page 3: it has a damaged head"},
		{"children out of order", [][]byte{metas(7, 8), branch(2, element{key: b, page: 3}, element{key: b, page: 4}), leaf(3), leaf(4)}, "keys are not in order"},
		{"keys out of order", [][]byte{metas(7, 8), root, leaf(3, element{key: a}, element{key: a}), leaf(4)}, "keys are not in order"},
		{"an element begins beyond the end", [][]byte{metas(7, 8), root, damage(leaf(3, element{}), pageHead+4, testPage), leaf(4)}, "beyond its end"},
		{"an element ends beyond the end", [][]byte{metas(7, 8), root, damage(leaf(3, element{key: a}), pageHead+8, testPage), leaf(4)}, "beyond its end"},
		{"unknown flags", [][]byte{metas(7, 8), root, leaf(3, element{flags: 2}), leaf(4)}, "has the flags 2"},
		{"a short bucket", [][]byte{metas(7, 8), root, leaf(3, element{flags: 1, value: bucket(4, nil)[:15]}), leaf(4)}, "a bucket is too short"},
		{"a short bucket in a value", [][]byte{metas(7, 8), root, leaf(3, element{flags: 1, value: bucket(0, make([]byte, 15))}), leaf(4)}, "it is too short"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			file := slices.Concat(c.file...)
			err := checkPages(bytes.NewReader(file), int64(len(file)))
			if c.wrong == "" {
				must.NoError(t, err)
			} else {
				must.ErrorContains(t, err, c.wrong)
			}
		})
	}
}
