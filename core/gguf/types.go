package gguf

// tensorType describes how a tensor's elements are stored: in blocks of elements elements and bytes
// bytes.
type tensorType struct {
	name     string
	elements uint64 // per block
	bytes    uint64 // per block
}

// tensorTypeOf returns the ggml tensor type with the number id. Numbers, names and sizes are those
// of enum ggml_type in ggml.h and of the block_* structs in ggml-common.h (llama.cpp). The gaps are
// types that ggml has removed; engines refuse them too.
func tensorTypeOf(id uint32) (tensorType, bool) {
	if id >= uint32(len(tensorTypes)) || tensorTypes[id].elements == 0 {
		return tensorType{}, false
	}
	return tensorTypes[id], true
}

var tensorTypes = [...]tensorType{
	0:  {"F32", 1, 4},
	1:  {"F16", 1, 2},
	2:  {"Q4_0", 32, 18},
	3:  {"Q4_1", 32, 20},
	6:  {"Q5_0", 32, 22},
	7:  {"Q5_1", 32, 24},
	8:  {"Q8_0", 32, 34},
	9:  {"Q8_1", 32, 36},
	10: {"Q2_K", 256, 84},
	11: {"Q3_K", 256, 110},
	12: {"Q4_K", 256, 144},
	13: {"Q5_K", 256, 176},
	14: {"Q6_K", 256, 210},
	15: {"Q8_K", 256, 292},
	16: {"IQ2_XXS", 256, 66},
	17: {"IQ2_XS", 256, 74},
	18: {"IQ3_XXS", 256, 98},
	19: {"IQ1_S", 256, 50},
	20: {"IQ4_NL", 32, 18},
	21: {"IQ3_S", 256, 110},
	22: {"IQ2_S", 256, 82},
	23: {"IQ4_XS", 256, 136},
	24: {"I8", 1, 1},
	25: {"I16", 1, 2},
	26: {"I32", 1, 4},
	27: {"I64", 1, 8},
	28: {"F64", 1, 8},
	29: {"IQ1_M", 256, 56},
	30: {"BF16", 1, 2},
	34: {"TQ1_0", 256, 54},
	35: {"TQ2_0", 256, 66},
	39: {"MXFP4", 32, 17},
	40: {"NVFP4", 64, 36},
	41: {"Q1_0", 128, 18},
	42: {"Q2_0", 64, 18},
}

// fileTypes names the values of general.file_type, enum llama_ftype in llama.h.
var fileTypes = [...]string{
	0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1",
	10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
	19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
	28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}

// fileTypeGuessed is set in general.file_type if a tool guessed the type: LLAMA_FTYPE_GUESSED.
const fileTypeGuessed = 1024

func fileTypeName(t uint64) string {
	t &^= fileTypeGuessed
	if t >= uint64(len(fileTypes)) {
		return ""
	}
	return fileTypes[t]
}

// valueType is the type of a metadata value, as the GGUF specification numbers them.
type valueType uint32

const (
	typeUint8 valueType = iota
	typeInt8
	typeUint16
	typeInt16
	typeUint32
	typeInt32
	typeFloat32
	typeBool
	typeString
	typeArray
	typeUint64
	typeInt64
	typeFloat64
)

// width returns the size of a value in bytes; for strings and arrays the minimum.
func (t valueType) width() (uint64, bool) {
	switch t {
	case typeUint8, typeInt8, typeBool:
		return 1, true
	case typeUint16, typeInt16:
		return 2, true
	case typeUint32, typeInt32, typeFloat32:
		return 4, true
	case typeUint64, typeInt64, typeFloat64, typeString:
		return 8, true
	case typeArray:
		return 12, true
	}
	return 0, false
}

func (t valueType) integer() bool {
	switch t {
	case typeUint8, typeInt8, typeUint16, typeInt16, typeUint32, typeInt32, typeUint64, typeInt64:
		return true
	case typeFloat32, typeFloat64, typeBool, typeString, typeArray:
	}
	return false
}
