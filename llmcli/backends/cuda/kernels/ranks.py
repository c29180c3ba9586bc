"""Logits as integers that are all different and compare as `top` ranks them, and the k-th largest of many, by their digits.

A rank is an i64: the float's bits as an integer in the floats' order (-0 is 0) in its upper half, and in the lower one the
id's complement, so that of equal logits that with the lower id ranks higher.
"""

from __future__ import annotations

import numpy as np

from llmcli.backends.cuda.kernels.platform import bits_float, cuda, device, float_bits

LOWEST = np.int64(-(2**63))
"""Below every logit's rank."""
DIGITS, COARSE = 256, 16
STATE = 3
ZERO, ALL, SIGN_SHIFT = np.float32(0), np.int64(0xFFFFFFFF), np.int32(31)
MAGNITUDE, SMALLEST = np.int32(2**31 - 1), np.int32(-(2**31) + 1)


@device
def order(x):
    """The bits of a float as an i32 that compares as the floats do; NaN is at both ends."""
    bits = float_bits(x + ZERO)  # -0 + 0 is 0
    return max(bits ^ ((bits >> SIGN_SHIFT) & MAGNITUDE), SMALLEST)


@device
def rank(key, id):
    return (np.int64(key) << 32) | (ALL ^ np.int64(id))


@device
def id_of(rank):
    return np.int32(ALL ^ (rank & ALL))


@device
def logit_of(rank):
    bits = np.int32(rank >> 32)
    return bits_float(bits ^ ((bits >> SIGN_SHIFT) & MAGNITUDE))


def kth(block, element):
    """The device function that finds the rank of the `wanted`-th largest of n elements, or one below it and above the next;
    LOWEST where there are not more than `wanted`. element(source, start, i): the rank of element i. All `block` threads call it.
    histogram: shared i32 [DIGITS]; coarse: shared i32 [COARSE]; state: shared i64 [STATE]: digits found, how many are wanted of
    those that begin with them, whether these are all there are. Eight digits of 8 bits at most; as a rule three tell."""

    @device
    def find(source, start, n, wanted, histogram, coarse, state):
        thread = cuda.threadIdx.x
        if n <= wanted:
            return LOWEST
        if thread == 0:
            state[0], state[1], state[2] = 0, wanted, 0
        for number in range(8):
            shift = 56 - 8 * number
            cuda.syncthreads()
            for i in range(thread, DIGITS, block):
                histogram[i] = 0
            found, left, done = state[0], state[1], state[2]
            if done:
                break
            cuda.syncthreads()
            for i in range(thread, n, block):
                x = element(source, start, i)
                if number == 0:  # the sign's digit: as unsigned
                    cuda.atomic.add(histogram, ((x >> 56) & 255) ^ 128, 1)
                elif x >> (shift + 8) == found >> (shift + 8):
                    cuda.atomic.add(histogram, (x >> shift) & 255, 1)
            cuda.syncthreads()
            for i in range(thread, COARSE, block):
                sum_ = 0
                for j in range(DIGITS // COARSE):
                    sum_ += histogram[i * (DIGITS // COARSE) + j]
                coarse[i] = sum_
            cuda.syncthreads()
            for i in range(thread, DIGITS, block):
                above = 0
                for j in range(i // (DIGITS // COARSE) + 1, COARSE):
                    above += coarse[j]
                for j in range(i + 1, (i // (DIGITS // COARSE) + 1) * (DIGITS // COARSE)):
                    above += histogram[j]
                if above < left and left <= above + histogram[i]:  # one of all threads
                    digit = i ^ 128 if number == 0 else i
                    state[0] = found | (np.int64(digit) << shift)
                    state[1] = left - above
                    state[2] = 1 if histogram[i] == left - above else 0
        cuda.syncthreads()
        return state[0]

    return find
