"""exp, tanh, sigmoid, the normal distribution, cosine and sine, logarithm: polynomials, because kernels call no libm.

All but `log` take vectors of 16. Infinities give the limits, NaN stays NaN, and no finite number gives NaN. The float32
polynomials are weighted minimax fits to the functions; those in float64 are the functions' series.
"""

from __future__ import annotations

import math

import numpy as np

from llmcli.backends.cpu.kernels.doubles import bits_of_f64, choose_f64, f64x16, low_bits, splat_f64
from llmcli.backends.cpu.kernels.instructions import constant, f32x16, f64, inline, instruction
from llmcli.backends.cpu.kernels.vectors import (
    absolute,
    as_f64,
    bits,
    choose,
    floats,
    fma,
    greater,
    greater_i32,
    larger,
    smaller,
    splat,
    splat_i32,
)

F = np.float32


def polynomial(type_, *coefficients):
    """The instruction that computes a polynomial (coefficients from the highest power down) on `type_`, by Horner's
    rule; in float32 with fused steps."""

    @instruction(type_(type_))
    def evaluate(b, x):
        value = constant(x.type, coefficients[0])
        for c in coefficients[1:]:
            c = constant(x.type, c)
            value = fma(b, value, x, c) if type_ == f32x16 else b.fadd(b.fmul(value, x), c)
        return value

    return evaluate


# --- Exponential

exp_series = polynomial(
    f32x16, 0.0013814596459269524, 0.0083687175065279, 0.04166838899254799, 0.1666652113199234, 0.4999999403953552, 1, 1
)
"""e^r for |r| <= log(2) / 2, within 0.05 ulp before rounding."""
LOG2_E = F(1.4426950408889634)
LN2_HIGH = F(0.693359375)
"""log(2) to 9 bits: times a whole number below 2^15 it is exact, also without a fused multiply-add."""
LN2_LOW = F(math.log(2) - 0.693359375)
TO_WHOLE = F(1.5 * 2**23)
"""Added to a float below 2^22 it leaves the nearest whole number in the low bits."""
EXP_LOW, EXP_HIGH = F(-105.0), F(89.0)
"""e^x is 0 in float32 at and below one, infinite at and above the other."""


@inline
def exp(x):
    """e^x within 0.9 ulp (1.2 where multiply-add rounds twice), also where the result is subnormal."""
    x = smaller(splat(EXP_HIGH), larger(splat(EXP_LOW), x))
    shifted = fma(x, splat(LOG2_E), splat(TO_WHOLE))
    whole = shifted - splat(TO_WHOLE)
    rest = fma(whole, splat(-LN2_LOW), fma(whole, splat(-LN2_HIGH), x))
    # 2^whole as two factors: one alone would leave the exponent's range where the result is subnormal or 2^128
    power = bits(shifted) - bits(splat(TO_WHOLE))
    half = power >> 1
    one = splat_i32(127)
    return exp_series(rest) * floats((half + one) << 23) * floats((power - half + one) << 23)


NORMAL = F(-87.0)
"""e^x is a normal number above it."""


@inline
def exp_below(x):
    """e^x for x <= 0 within 0.9 ulp, and 0 below NORMAL: half the work."""
    shifted = fma(x, splat(LOG2_E), splat(TO_WHOLE))
    whole = shifted - splat(TO_WHOLE)
    rest = fma(whole, splat(-LN2_LOW), fma(whole, splat(-LN2_HIGH), x))
    # the low bits of `shifted` are the whole power: on top of the exponent, what else is in them is shifted out
    return choose(greater(splat(NORMAL), x), splat(F(0)), floats(bits(exp_series(rest)) + (bits(shifted) << 23)))


exp2_series = polynomial(
    f32x16, 0.0013264727246980262, 0.009671512688146347, 0.055507337435745506, 0.24022242084635115, 0.6931469775987161, 1
)
"""2^r for |r| <= 1/2, within 10^-7 of it."""


@inline
def exp2_below(x):
    """2^x for x <= 0 within 2 ulp, and 0 below -126: three steps fewer that use the multiplier."""
    shifted = x + splat(TO_WHOLE)
    rest = x - (shifted - splat(TO_WHOLE))
    return choose(greater(splat(F(-126)), x), splat(F(0)), floats(bits(exp2_series(rest)) + (bits(shifted) << 23)))


# --- What follows from it

tanh_series = polynomial(f32x16, -0.0057049743, 0.020639075, -0.053739712, 0.13331442, -0.3333328)
"""(tanh(x) - x) / x^3 in x^2, |x| <= 0.625."""


@inline
def tanh(x):
    """Within 2 ulp."""
    size = absolute(x)
    square = x * x
    far = splat(F(1)) - splat(F(2)) / (exp(size + size) + splat(F(1)))
    far = floats(bits(far) | (bits(x) & splat_i32(-(2**31))))
    return choose(greater(splat(F(0.625)), size), fma(x * square, tanh_series(square), x), far)


@inline
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return splat(F(1)) / (splat(F(1)) + exp(-x))


tail_series = polynomial(
    f32x16,
    -0.026388613507151604,
    0.1512456089258194,
    -0.32825523614883423,
    0.29908397793769836,
    -0.11261457204818726,
    0.14882071316242218,
    0.10277862846851349,
    0.1338636428117752,
    0.1314586102962494,
    7.263982752192533e-06,
)
"""P(X > a) * e^(a^2 / 2) for a standard normal X, in 1 / (1 + TAIL * a), 0 <= a <= 13.5."""
TAIL = F(0.33)


@inline
def normal_distribution(x):
    """P(X <= x) for a standard normal X, (1 + erf(x / sqrt 2)) / 2; small values keep their relative precision."""
    size = absolute(x)
    tail = tail_series(splat(F(1)) / fma(size, splat(TAIL), splat(F(1)))) * exp(splat(F(-0.5)) * size * size)
    return choose(greater(x, splat(F(0))), splat(F(1)) - tail, tail)


# --- Angles, in float64

sine_series = polynomial(f64x16, *((-1) ** k / math.factorial(2 * k + 1) for k in range(6, -1, -1)))
"""sin(r) / r in r^2, |r| <= pi / 4: the first term left out is below 2e-14."""
cosine_series = polynomial(f64x16, *((-1) ** k / math.factorial(2 * k) for k in range(7, -1, -1)))
QUARTERS = 2 / math.pi
QUARTER_HIGH = 6746518852 / 2**32
"""pi / 2 to 33 bits: times a whole number below 2^20 it is exact."""
QUARTER_LOW = 6.0771005065061926e-11
TO_WHOLE_F64 = 1.5 * 2**52


@inline
def cosine_sine(angle):
    """f64x16 -> (cos, sin) within 1e-12, for |angle| < 1.6e6 (2^20 quarters of a turn)."""
    shifted = angle * splat_f64(QUARTERS) + splat_f64(TO_WHOLE_F64)
    whole = shifted - splat_f64(TO_WHOLE_F64)
    rest = (angle - whole * splat_f64(QUARTER_HIGH)) - whole * splat_f64(QUARTER_LOW)
    square = rest * rest
    s, c = rest * sine_series(square), cosine_series(square)
    quarter = low_bits(shifted)
    odd = greater_i32(quarter & splat_i32(1), splat_i32(0))
    cosine, sine = choose_f64(odd, s, c), choose_f64(odd, c, s)
    # the cosine is negative in quarters 1 and 2, the sine in 2 and 3
    cosine = choose_f64(greater_i32((quarter + splat_i32(1)) & splat_i32(2), splat_i32(0)), -cosine, cosine)
    sine = choose_f64(greater_i32(quarter & splat_i32(2), splat_i32(0)), -sine, sine)
    return cosine, sine


# --- Logarithm of one float64

atanh_series = polynomial(f64, *(1 / (2 * k + 1) for k in range(11, -1, -1)))
"""atanh(s) / s in s^2, |s| < 0.172."""
LN2, SQRT2 = math.log(2), math.sqrt(2)
MANTISSA = 2**52 - 1
ONE_BITS = 1023 << 52


@inline
def log(x):
    """The natural logarithm of a normal, positive float64; others pass through."""
    if not (2.3e-308 < x < 1.7e308):
        return x
    b = bits_of_f64(x)
    exponent = (b >> 52) - 1023
    mantissa = as_f64((b & MANTISSA) | ONE_BITS)
    if mantissa > SQRT2:
        mantissa, exponent = mantissa * 0.5, exponent + 1
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return exponent * LN2 + 2.0 * s * atanh_series(s * s)
