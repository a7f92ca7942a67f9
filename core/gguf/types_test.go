package gguf

import (
	"testing"

	"github.com/shoenig/test/must"
)

// The bits per element, scales included, match llama.cpp's documentation of its tensor encodings.
func TestTensorTypes(t *testing.T) {
	t.Parallel()
	bits := map[string]float64{
		"F32": 32, "F16": 16, "BF16": 16, "F64": 64, "I8": 8, "I16": 16, "I32": 32, "I64": 64,
		"Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q5_1": 6, "Q8_0": 8.5, "Q8_1": 9,
		"Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625, "Q8_K": 9.125,
		"IQ1_S": 1.5625, "IQ1_M": 1.75, "IQ2_XXS": 2.0625, "IQ2_XS": 2.3125, "IQ2_S": 2.5625, "IQ3_XXS": 3.0625, "IQ3_S": 3.4375, "IQ4_NL": 4.5, "IQ4_XS": 4.25,
		"TQ1_0": 1.6875, "TQ2_0": 2.0625, "MXFP4": 4.25, "NVFP4": 4.5, "Q1_0": 1.125, "Q2_0": 2.25,
	}
	known := 0
	for id := range uint32(1000) {
		typ, ok := tensorTypeOf(id)
		if !ok {
			continue
		}
		known++
		must.Eq(t, bits[typ.name], 8*float64(typ.bytes)/float64(typ.elements), must.Sprint(typ.name))
	}
	must.Eq(t, len(bits), known)
	for _, removed := range []uint32{4, 5, 31, 36, 1 << 31} {
		_, ok := tensorTypeOf(removed)
		must.False(t, ok, must.Sprint(removed))
	}
}
