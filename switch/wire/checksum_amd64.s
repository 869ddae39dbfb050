//go:build !race

#include "textflag.h"

// func sumBlocks(p *byte, n int) uint64
//
// Each quadword is two words of 32 bits; those are added in accumulators of 64, the lower halves in Y0 and Y2 and the
// upper ones in Y1 and Y3. No accumulator overflows below 2^32 additions.
TEXT ·sumBlocks(SB), NOSPLIT, $0-24
	MOVQ p+0(FP), SI
	MOVQ n+8(FP), CX
	VPXOR Y0, Y0, Y0
	VPXOR Y1, Y1, Y1
	VPXOR Y2, Y2, Y2
	VPXOR Y3, Y3, Y3
	VPXOR Y15, Y15, Y15

loop:
	VMOVDQU (SI), Y4
	VMOVDQU 32(SI), Y5
	VMOVDQU 64(SI), Y6
	VMOVDQU 96(SI), Y7
	VPBLENDD $0xAA, Y15, Y4, Y8 // the lower halves
	VPBLENDD $0xAA, Y15, Y5, Y9
	VPBLENDD $0xAA, Y15, Y6, Y10
	VPBLENDD $0xAA, Y15, Y7, Y11
	VPSRLQ $32, Y4, Y4
	VPSRLQ $32, Y5, Y5
	VPSRLQ $32, Y6, Y6
	VPSRLQ $32, Y7, Y7
	VPADDQ Y8, Y0, Y0
	VPADDQ Y4, Y1, Y1
	VPADDQ Y9, Y2, Y2
	VPADDQ Y5, Y3, Y3
	VPADDQ Y10, Y0, Y0
	VPADDQ Y6, Y1, Y1
	VPADDQ Y11, Y2, Y2
	VPADDQ Y7, Y3, Y3
	ADDQ $128, SI
	SUBQ $128, CX
	JNZ loop

	VPADDQ Y1, Y0, Y0
	VPADDQ Y3, Y2, Y2
	VPADDQ Y2, Y0, Y0
	VEXTRACTI128 $1, Y0, X1
	VPADDQ X1, X0, X0
	VPSHUFD $0xEE, X0, X1
	VPADDQ X1, X0, X0
	VMOVQ X0, AX
	VZEROUPPER
	MOVQ AX, ret+16(FP)
	RET
