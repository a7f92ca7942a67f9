#include "textflag.h"

// entry does the same as that for amd64.
TEXT rbee_entry(SB), NOSPLIT|NOFRAME, $0
	MOVD $1, R0
	MOVD $1, R1
	MOVD $25, R8
	SVC
	MOVD R0, ·stdoutFlags(SB)
	B    _rt0_arm64_linux(SB)
