//go:build !race

#include "textflag.h"

// Both functions keep keys in the lanes of vectors and go down level by level, with a mask of the lanes that have
// come to a bitmap. Gathers clear their mask, hence the copies; and they keep what their target had in other
// lanes, hence the zeroing, which cuts that dependency.
//
// Words are as in arena.go: pointer = 1<<28, kindBitmap = 1, kindTable = 2, bitmapHead = 2 words of 4 bytes.

DATA evens<>+0(SB)/8, $0
DATA evens<>+8(SB)/8, $2
DATA evens<>+16(SB)/8, $4
DATA evens<>+24(SB)/8, $6
DATA evens<>+32(SB)/8, $8
DATA evens<>+40(SB)/8, $10
DATA evens<>+48(SB)/8, $12
DATA evens<>+56(SB)/8, $14
GLOBL evens<>(SB), RODATA|NOPTR, $64

#define CONSTANTS \
	MOVL         $(1<<28), AX        \ // pointer
	VPBROADCASTD AX, Z20             \
	DECL         AX                  \ // offMask
	VPBROADCASTD AX, Z21             \
	MOVL         $63, AX             \
	VPBROADCASTD AX, Z22             \
	VPBROADCASTQ AX, Z23             \
	MOVL         $2, AX              \ // kindTable
	VPBROADCASTD AX, Z24

// ROOT4 takes sixteen keys from SI+KEYS and leaves their words in W, the bits from there on at the top of X, and
// the lanes that came to a bitmap in K.
#define ROOT4(KEYS, X, W, K) \
	VMOVDQU32  KEYS(SI), X                   \
	VPSRLD     X16, X, Z1                    \
	VPSLLD     X17, X, X                     \
	KXNORW     K2, K2, K2                    \
	VPXORD     W, W, W                       \
	VPGATHERDD (R8)(Z1*4), K2, W             \
	VPSUBD     Z20, W, Z1                    \
	VPCMPUD    $1, Z20, Z1, K

// LEVEL4 takes one step of the lanes in K, whose words are bitmaps, and leaves those that came to one in K.
#define LEVEL4(X, W, K) \
	VPANDD        Z21, W, Z1                 \ // offsets
	VPSRLD        $26, X, Z2                 \
	VPXORD        Z22, Z2, Z2                \ // 63 - position
	VEXTRACTI64X4 $1, Z1, Y3                 \
	VEXTRACTI64X4 $1, Z2, Y12                \
	KMOVW         K, K2                      \
	KSHIFTRW      $8, K, K3                  \
	VPXORQ        Z13, Z13, Z13              \
	VPXORQ        Z14, Z14, Z14              \
	VPGATHERDQ    (R9)(Y1*4), K2, Z13        \ // the bitmaps of the lower lanes
	VPGATHERDQ    (R9)(Y3*4), K3, Z14        \ // and of the upper ones
	VPMOVZXDQ     Y2, Z2                     \
	VPMOVZXDQ     Y12, Z12                   \
	VPSLLVQ       Z2, Z13, Z13               \
	VPSLLVQ       Z12, Z14, Z14              \
	VPOPCNTQ      Z13, Z13                   \
	VPOPCNTQ      Z14, Z14                   \
	VPMOVQD       Z13, Y13                   \
	VPMOVQD       Z14, Y14                   \
	VINSERTI64X4  $1, Y14, Z13, Z13          \ // runs
	VPADDD        Z1, Z13, Z13               \
	VPGATHERDD    8(R9)(Z13*4), K, W         \
	VPSLLD        $6, X, X                   \
	VPSUBD        Z20, W, Z1                 \
	VPCMPUD       $1, Z20, Z1, K

// func gather4(root, base *uint32, shift uint64, keys *uint32, out *NextHop, n uint64)
TEXT ·gather4(SB), NOSPLIT, $0-48
	MOVQ root+0(FP), R8
	MOVQ base+8(FP), R9
	MOVQ shift+16(FP), CX
	MOVQ keys+24(FP), SI
	MOVQ out+32(FP), DI
	MOVQ n+40(FP), DX
	CONSTANTS
	VMOVQ CX, X16             // to select a root position
	MOVQ  $32, AX
	SUBQ  CX, AX
	VMOVQ AX, X17             // to drop the root's bits

next4:
	ROOT4(0, Z4, Z8, K4)
	ROOT4(64, Z5, Z9, K5)
	JMP test4

level4:
	LEVEL4(Z4, Z8, K4)
	LEVEL4(Z5, Z9, K5)

test4:
	KORTESTW K4, K5
	JNZ      level4

	VMOVDQU32 Z8, (DI)
	VMOVDQU32 Z9, 64(DI)
	ADDQ      $128, SI
	ADDQ      $128, DI
	SUBQ      $32, DX
	JNZ       next4
	VZEROUPPER
	RET

// ROOT6 takes eight keys from SI+KEYS, leaves their words in W, the bits from there on at the top of X, and the
// lanes that came to a bitmap in K. It passes tables.
#define ROOT6(KEYS, X, W, WZ, K) \
	VMOVDQU64  KEYS(SI), X                   \
	VPERMT2Q   (KEYS+64)(SI), Z25, X         \ // upper halves
	VPSRLQ     X16, X, Z1                    \
	VPSLLQ     X17, X, X                     \
	KXNORB     K2, K2, K2                    \
	VPXORD     WZ, WZ, WZ                    \
	VPGATHERQD (R8)(Z1*4), K2, W             \
	VPSRLD     $28, W, Y2                    \
	VPCMPEQD   Y24, Y2, K1                   \
	VPANDD     Y21, W, Y3                    \
	VPMOVZXDQ  Y3, Z3                        \
	VPSRLQ     $54, X, Z2                    \
	VPADDQ     Z2, Z3, Z3                    \
	KMOVB      K1, K2                        \
	VPGATHERQD (R9)(Z3*4), K2, W             \
	VPSLLQ     $10, X, K1, X                 \
	VPSUBD     Y20, W, Y1                    \
	VPCMPUD    $1, Y20, Y1, K

// LEVEL6 takes one step of the lanes in K, whose words are bitmaps, and leaves those that came to one in K.
#define LEVEL6(X, W, K) \
	VPANDD     Y21, W, Y2                    \
	KMOVB      K, K2                         \
	VPXORQ     Z3, Z3, Z3                    \
	VPGATHERDQ (R9)(Y2*4), K2, Z3            \
	VPSRLQ     $58, X, Z1                    \
	VPXORQ     Z23, Z1, Z1                   \
	VPSLLVQ    Z1, Z3, Z3                    \
	VPOPCNTQ   Z3, Z3                        \
	VPMOVZXDQ  Y2, Z2                        \
	VPADDQ     Z2, Z3, Z3                    \
	VPGATHERQD 8(R9)(Z3*4), K, W             \
	VPSLLQ     $6, X, X                      \
	VPSUBD     Y20, W, Y1                    \
	VPCMPUD    $1, Y20, Y1, K

// func gather6(root, base *uint32, shift uint64, keys *Key6, out *NextHop, n uint64)
TEXT ·gather6(SB), NOSPLIT, $0-48
	MOVQ root+0(FP), R8
	MOVQ base+8(FP), R9
	MOVQ shift+16(FP), CX
	MOVQ keys+24(FP), SI
	MOVQ out+32(FP), DI
	MOVQ n+40(FP), DX
	CONSTANTS
	VMOVDQU64 evens<>(SB), Z25
	VMOVQ     CX, X16
	MOVQ      $64, AX
	SUBQ      CX, AX
	VMOVQ     AX, X17

next6:
	ROOT6(0, Z4, Y8, Z8, K4)
	ROOT6(128, Z5, Y9, Z9, K5)
	ROOT6(256, Z6, Y10, Z10, K6)
	ROOT6(384, Z7, Y11, Z11, K7)
	JMP test6

level6:
	LEVEL6(Z4, Y8, K4)
	LEVEL6(Z5, Y9, K5)
	LEVEL6(Z6, Y10, K6)
	LEVEL6(Z7, Y11, K7)

test6:
	KORB     K4, K5, K1
	KORB     K6, K7, K2
	KORTESTB K1, K2
	JNZ      level6

	VMOVDQU32 Y8, (DI)
	VMOVDQU32 Y9, 32(DI)
	VMOVDQU32 Y10, 64(DI)
	VMOVDQU32 Y11, 96(DI)
	ADDQ      $512, SI
	ADDQ      $128, DI
	SUBQ      $32, DX
	JNZ       next6
	VZEROUPPER
	RET
