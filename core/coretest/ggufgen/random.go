package main

import (
	"encoding/binary"
	"io"
	"math"
	"slices"
)

// splitmix is the splitmix64 generator: fast, and the same on every Go release.
type splitmix uint64

func (s *splitmix) next() uint64 {
	*s += 0x9e3779b97f4a7c15
	z := uint64(*s)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// randomRows writes n uniform values with zero mean and the given standard deviation.
func randomRows(w io.Writer, typ uint32, r *splitmix, n uint64, std float64) error {
	const chunk = 32 * 4096
	buf := make([]byte, 0, chunk*4)
	for done := uint64(0); done < n; {
		m := min(chunk, n-done)
		buf = buf[:0]
		switch typ {
		case typeF32:
			for range m {
				buf = binary.LittleEndian.AppendUint32(buf, math.Float32bits(float32(r.unit()*std)))
			}
		case typeF16:
			for range m {
				buf = binary.LittleEndian.AppendUint16(buf, f16(float32(r.unit()*std)))
			}
		case typeQ8_0: // half scale, then 32 signed bytes in [-127,127]
			d := f16(float32(std / 73.32))
			for i := uint64(0); i < m; i += 32 {
				buf = binary.LittleEndian.AppendUint16(buf, d)
				for range 4 {
					v := r.next()
					for k := range 8 {
						b := byte(v >> (8 * k))
						if b == 0x80 {
							b = 0
						}
						buf = append(buf, b)
					}
				}
			}
		case typeQ4_0: // half scale, then 16 bytes of two nibbles in [1,15], zero point 8
			d := f16(float32(std / 4.32))
			for i := uint64(0); i < m; i += 32 {
				buf = binary.LittleEndian.AppendUint16(buf, d)
				for range 2 {
					v := r.next()
					for k := range 8 {
						x := byte(v>>(8*k)) % 225
						buf = append(buf, (1+x/15)<<4|(1+x%15))
					}
				}
			}
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
		done += m
	}
	return nil
}

// unit returns a uniform value with zero mean and unit variance.
func (s *splitmix) unit() float64 {
	return (float64(s.next()>>11)/(1<<53)*2 - 1) * math.Sqrt(3)
}

// repeat writes one value n times.
func repeat(w io.Writer, value float32, n uint64) error {
	return binary.Write(w, binary.LittleEndian, slices.Repeat([]float32{value}, int(n)))
}
