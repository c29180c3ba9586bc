"""exp, tanh, sigmoid, the normal distribution, cosine and sine: the CPU's polynomials (cpu/kernels/mathematics.py), one number at
a time and step by step the same, so that both devices give the same bits where their inputs are the same.

All but `cosine_sine` take and give f32. Infinities give the limits, NaN stays NaN, no finite number gives NaN.
"""

from __future__ import annotations

import math

import numpy as np

from llmcli.backends.cuda.kernels.platform import bits_float, device, float_bits, fma, product

F = np.float32
ZERO, ONE, TWO, HALF = F(0), F(1), F(2), F(0.5)

# --- Exponential

E6, E5, E4, E3, E2 = F(0.0013814596459269524), F(0.0083687175065279), F(0.04166838899254799), F(0.1666652113199234), F(0.4999999403953552)
"""e^r for |r| <= log(2) / 2 is 1 + r + r^2 (E2 + r E3 + ...), within 0.05 ulp before rounding."""
LOG2_E = F(1.4426950408889634)
LN2_HIGH = F(0.693359375)
LN2_LOW = F(math.log(2) - 0.693359375)
TO_WHOLE = F(1.5 * 2**23)
"""Added to a float below 2^22 it leaves the nearest whole number in the low bits."""
WHOLE_BITS = np.int32(0x4B400000)
EXP_LOW, EXP_HIGH = F(-105.0), F(89.0)
"""e^x is 0 in float32 at and below one, infinite at and above the other."""
MINUS_LN2_HIGH, MINUS_LN2_LOW = -LN2_HIGH, -LN2_LOW
BIAS, FRACTION = np.int32(127), np.int32(23)


@device
def exp(x):
    """e^x within 0.9 ulp, also where the result is subnormal."""
    if x < EXP_LOW:
        x = EXP_LOW
    if x > EXP_HIGH:
        x = EXP_HIGH
    shifted = fma(x, LOG2_E, TO_WHOLE)
    whole = shifted - TO_WHOLE
    rest = fma(whole, MINUS_LN2_LOW, fma(whole, MINUS_LN2_HIGH, x))
    series = fma(fma(fma(E6, rest, E5), rest, E4), rest, E3)
    series = fma(fma(fma(series, rest, E2), rest, ONE), rest, ONE)
    # 2^whole as two factors: one alone would leave the exponent's range where the result is subnormal or 2^128
    power = float_bits(shifted) - WHOLE_BITS
    half = power >> 1
    return product(product(series, bits_float((half + BIAS) << FRACTION)), bits_float((power - half + BIAS) << FRACTION))


# --- What follows from it

T5, T4, T3, T2, T1 = F(-0.0057049743), F(0.020639075), F(-0.053739712), F(0.13331442), F(-0.3333328)
"""(tanh(x) - x) / x^3 in x^2, |x| <= 0.625."""
NEAR = F(0.625)


@device
def tanh(x):
    """Within 2 ulp."""
    size = abs(x)
    if size < NEAR:
        square = product(x, x)
        series = fma(fma(fma(fma(T5, square, T4), square, T3), square, T2), square, T1)
        return fma(product(x, square), series, x)
    far = ONE - TWO / (exp(size + size) + ONE)
    return -far if x < ZERO else far


@device
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return ONE / (ONE + exp(-x))


N9, N8, N7, N6 = F(-0.026388613507151604), F(0.1512456089258194), F(-0.32825523614883423), F(0.29908397793769836)
N5, N4, N3 = F(-0.11261457204818726), F(0.14882071316242218), F(0.10277862846851349)
N2, N1, N0 = F(0.1338636428117752), F(0.1314586102962494), F(7.263982752192533e-06)
"""P(X > a) * e^(a^2 / 2) for a standard normal X, in 1 / (1 + TAIL * a), 0 <= a <= 13.5."""
TAIL, MINUS_HALF = F(0.33), F(-0.5)


@device
def normal_distribution(x):
    """P(X <= x) for a standard normal X, (1 + erf(x / sqrt 2)) / 2; small values keep their relative precision."""
    size = abs(x)
    u = ONE / fma(size, TAIL, ONE)
    series = fma(fma(fma(fma(N9, u, N8), u, N7), u, N6), u, N5)
    series = fma(fma(fma(fma(fma(series, u, N4), u, N3), u, N2), u, N1), u, N0)
    tail = product(series, exp(product(product(MINUS_HALF, size), size)))
    return ONE - tail if x > ZERO else tail


# --- Angles, in float64

QUARTERS = 2 / math.pi
QUARTER_HIGH = 6746518852 / 2**32
"""pi / 2 to 33 bits: times a whole number below 2^20 it is exact."""
QUARTER_LOW = 6.0771005065061926e-11
TO_WHOLE_F64 = 1.5 * 2**52
S6, S5, S4, S3, S2, S1 = ((-1) ** k / math.factorial(2 * k + 1) for k in range(6, 0, -1))
"""sin(r) / r in r^2, |r| <= pi / 4: the first term left out is below 2e-14."""
C7, C6, C5, C4, C3, C2, C1 = ((-1) ** k / math.factorial(2 * k) for k in range(7, 0, -1))


@device
def cosine_sine(angle):
    """f64 -> (cos, sin) within 1e-12, for |angle| < 1.6e6 (2^20 quarters of a turn)."""
    whole = (angle * QUARTERS + TO_WHOLE_F64) - TO_WHOLE_F64
    rest = (angle - whole * QUARTER_HIGH) - whole * QUARTER_LOW
    square = rest * rest
    s = rest * ((((((S6 * square + S5) * square + S4) * square + S3) * square + S2) * square + S1) * square + 1.0)
    c = ((((((C7 * square + C6) * square + C5) * square + C4) * square + C3) * square + C2) * square + C1) * square + 1.0
    quarter = int(whole) & 3
    if quarter == 0:
        return c, s
    if quarter == 1:
        return -s, c
    if quarter == 2:
        return -c, -s
    return s, -c
