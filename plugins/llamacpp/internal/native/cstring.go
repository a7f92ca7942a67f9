package native

import "unsafe"

// maxCString bounds the bytes read of a C string.
const maxCString = 64 << 10

// cString copies a C string.
func cString(p *byte) string {
	n := 0
	for n < maxCString && *(*byte)(unsafe.Add(unsafe.Pointer(p), n)) != 0 {
		n++
	}
	return string(unsafe.Slice(p, n))
}
