"""What kernels are written in: CUDA's instructions, or plain Python twins of them in Numba's simulator. Same names, same results. Where
kernels are only started, the names stand for nothing (named.py).

Kernel modules import all of it from here, `cuda` too (never from numba: the simulator would give them another one):

    from llmcli.backends.cuda.kernels.platform import cuda, device, kernel, lane_sum

    @device                                     a function that kernels call; may use cuda.threadIdx and barriers
    @kernel                                     a kernel, started as k[grid, block, stream](arguments)
    @kernel_of(registers)                       one that may use so many registers a thread
    @made                                       a function that makes kernels or device functions (named.py)
    dp4a(a, b, c)                i32            c + four products of the signed bytes of a and b
    permute(a, b, selector)      i32            byte i of the result is byte (selector >> 4 i) & 7 of b:a; bits 3 must be 0
    mma_s8(a0..a3, b0, b1, c0..c3)  4 i32       a warp's C + A @ B: mma.sync.m16n8k32, signed bytes; fragments as in the PTX manual
    mma_f16(a0..a3, b0, b1, c0..c3)  4 f32      likewise mma.sync.m16n8k16: A and B are f16, two in each word
    load16(bytes, at), load8(bytes, at)         4 or 2 i32: bytes of a u8 array at a multiple of 16 or 8, which nobody writes meanwhile
    load4(bytes, at), load2(bytes, at)  i32     4 or 2 bytes (without sign) likewise
    store4(bytes, at, word)                     a word to a u8 array, at a multiple of 4
    shared16(words, at), shared8, shared4       4, 2 or 1 i32 of a shared i32 array, at a multiple of 4, 2 or 1
    shared_floats(floats, at)                   four f32 of a shared array that has alignment=16, at a multiple of 4
    copy16(words, at, bytes, from)              starts to copy 16 bytes of a u8 array to word `at` of a shared i32 array (cp.async)
    copies_commit()                             closes a group of a thread's copies
    copies_wait()                               waits for all groups; others' copies are there after a barrier
    copies_wait_but(n)                          outside of kernels: gives the function that waits for all groups but the last n
    lane_sum(x), lane_max(x)                    over a warp's 32 lanes, in every lane; xor 16, 8, 4, 2, 1 is the order of addition
    word_sum(x), word_max(x)     i32            likewise, of integers: one instruction
    fma(a, b, c)                 f32            a * b + c, rounded once
    product(a, b)                f32            a * b, rounded: the compiler may turn a plain a * b + c into one fma
    quotient(a, b)               f32            a / b, rounded; division by 0 gives infinity or NaN
    nearest(x)                   i32            rounded to the nearest, halves to even
    half_to_float(bits), float_to_half(x)       f16 as its 16 bits in an integer; to the nearest, halves to even
    bits_float(bits), float_bits(x)             an i32 and the f32 of the same bits

Warp operations (mma_s8, lane_*, word_*) and cuda.syncthreads() are called by all threads of a block equally often: guard values, not calls.
Literals are i64 and f64 in Numba: write np.float32(0), np.int32(0) where the type matters.
"""

from __future__ import annotations

import importlib

from llmcli.backends.cuda import device as machine
from llmcli.backends.cuda import kernels

SIMULATED = machine.simulated()
WARP = 32

_forms = importlib.import_module(f"{kernels.__name__}.{'twins' if SIMULATED else 'ptx' if kernels.COMPILING else 'named'}")

bits_float = _forms.bits_float
copies_commit = _forms.copies_commit
copies_wait = _forms.copies_wait
copies_wait_but = _forms.copies_wait_but
copy16 = _forms.copy16
cuda = _forms.cuda
device = _forms.device
dp4a = _forms.dp4a
float_bits = _forms.float_bits
float_to_half = _forms.float_to_half
fma = _forms.fma
half_to_float = _forms.half_to_float
kernel = _forms.kernel
kernel_of = _forms.kernel_of
lane_max = _forms.lane_max
lane_sum = _forms.lane_sum
load2 = _forms.load2
load4 = _forms.load4
load8 = _forms.load8
load16 = _forms.load16
made = _forms.made
mma_f16 = _forms.mma_f16
mma_s8 = _forms.mma_s8
nearest = _forms.nearest
permute = _forms.permute
product = _forms.product
quotient = _forms.quotient
shared4 = _forms.shared4
shared8 = _forms.shared8
shared16 = _forms.shared16
shared_floats = _forms.shared_floats
store4 = _forms.store4
word_max = _forms.word_max
word_sum = _forms.word_sum
