"""CUDA's instructions, or their twins, and the simulator's scheduler that the other tests rely on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from steps import applied

from llmcli.backends.cuda.kernels.platform import (
    SIMULATED,
    copies_commit,
    copies_wait,
    copies_wait_but,
    copy16,
    cuda,
    device,
    dp4a,
    float_to_half,
    half_to_float,
    kernel,
    lane_max,
    lane_sum,
    load16,
    mma_f16,
    mma_s8,
    permute,
    word_max,
    word_sum,
)


@kernel
def reduce(x, sums, largest):
    i = cuda.grid(1)
    sums[i] = lane_sum(x[i])
    largest[i] = lane_max(x[i])


def test_a_warp_adds_in_its_order() -> None:
    x = (np.random.default_rng(1).standard_normal(128) * 10.0 ** np.arange(-64, 64)[::-1].clip(-9, 9)).astype(np.float32)
    sums, largest = np.full((2, 128), np.nan, np.float32)
    reduce[2, 64](x, sums, largest)
    tree = x.reshape(4, 32)
    while tree.shape[1] > 1:
        half = tree.shape[1] // 2
        tree = tree[:, :half] + tree[:, half:]
    np.testing.assert_array_equal(sums.reshape(4, 32), np.repeat(tree, 32, 1))
    np.testing.assert_array_equal(largest.reshape(4, 32), np.repeat(x.reshape(4, 32).max(1, keepdims=True), 32, 1))


@kernel
def reduce_words(x, sums, largest):
    i = cuda.grid(1)
    sums[i] = word_sum(x[i])
    largest[i] = word_max(x[i])


def test_a_warp_adds_words() -> None:
    x = np.random.default_rng(1).integers(-(2**26), 2**26, 64).astype(np.int32)
    sums, largest = np.zeros((2, 64), np.int32)
    reduce_words[2, 32](x, sums, largest)
    np.testing.assert_array_equal(sums.reshape(2, 32), np.repeat(x.reshape(2, 32).sum(1, keepdims=True), 32, 1))
    np.testing.assert_array_equal(largest.reshape(2, 32), np.repeat(x.reshape(2, 32).max(1, keepdims=True), 32, 1))


def fragments(mma):
    """The kernel of one warp's C += A @ B, fragments loaded as the PTX manual says."""

    @kernel
    def multiply(a, b, c):
        lane = cuda.threadIdx.x
        g, q = lane // 4, lane % 4
        d = mma(
            a[g * 8 + q], a[(g + 8) * 8 + q], a[g * 8 + 4 + q], a[(g + 8) * 8 + 4 + q], b[g * 8 + q], b[g * 8 + 4 + q],
            c[g * 8 + 2 * q], c[g * 8 + 2 * q + 1], c[(g + 8) * 8 + 2 * q], c[(g + 8) * 8 + 2 * q + 1],
        )  # fmt: skip
        c[g * 8 + 2 * q], c[g * 8 + 2 * q + 1], c[(g + 8) * 8 + 2 * q], c[(g + 8) * 8 + 2 * q + 1] = d

    return multiply


multiply, multiply_halves = fragments(mma_s8), fragments(mma_f16)


def test_mma_is_a_matrix_product() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(-128, 128, (16, 32)).astype(np.int8), rng.integers(-128, 128, (8, 32)).astype(np.int8)
    c = rng.integers(-1000, 1000, (16, 8)).astype(np.int32)
    out = c.copy().reshape(-1)
    multiply[1, 32](a.view(np.int32).reshape(-1), b.view(np.int32).reshape(-1), out)
    np.testing.assert_array_equal(out.reshape(16, 8), c + a.astype(np.int32) @ b.T.astype(np.int32))


def test_mma_of_halves_is_a_matrix_product_whose_rows_and_columns_know_nothing_of_each_other() -> None:
    """The second is what attention's one order of arithmetic rests on: a row and a column have the same bits wherever they stand, and
    whatever stands beside them."""
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((16, 16)).astype(np.float16), rng.standard_normal((8, 16)).astype(np.float16)
    c = rng.standard_normal((16, 8)).astype(np.float32) * np.float32(100)

    def found(a: npt.NDArray[np.float16], b: npt.NDArray[np.float16], c: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        out = c.copy().reshape(-1)
        words = (np.ascontiguousarray(x).view(np.int32).reshape(-1) for x in (a, b))
        multiply_halves[1, 32](*words, out)
        return out.reshape(16, 8)

    first = found(a, b, c)
    np.testing.assert_allclose(first, c + a.astype(np.float64) @ b.T.astype(np.float64), rtol=1e-5, atol=1e-4)
    rows, columns = rng.permutation(16), rng.permutation(8)
    np.testing.assert_array_equal(found(a[rows], b[columns], c[rows][:, columns]), first[rows][:, columns])
    alone = np.where(np.arange(16) == 5, 1, 0).astype(np.float16)[:, None]
    np.testing.assert_array_equal(found(a * alone, b, c)[5], first[5])


wait_but_last = copies_wait_but(1)


@kernel
def staged(x, out):
    words = cuda.shared.array(256, np.int32, alignment=16)
    i = cuda.threadIdx.x
    copy16(words, i * 4, x, i * 16)
    copies_commit()
    copy16(words, 128 + i * 4, x, 512 + i * 16)
    copies_commit()
    out[i] = words[i * 4]
    wait_but_last()
    out[32 + i] = words[i * 4]
    out[64 + i] = words[128 + i * 4]
    copies_wait()
    cuda.syncthreads()
    out[96 + i] = words[128 + (31 - i) * 4]


def test_copies_are_there_when_waited_for() -> None:
    x, out = np.arange(256, dtype=np.int32), np.zeros(128, np.int32)
    staged[1, 32](x.view(np.uint8), out)
    expected = [np.full(32, -1), x[:128:4], np.full(32, -1), x[128::4][::-1]]
    said = slice(None) if SIMULATED else slice(1, None, 2)  # a GPU's copies may be there before they are waited for
    np.testing.assert_array_equal(out.reshape(4, 32)[said], expected[said])


@device
def dot(a, b, c):
    return dp4a(a, b, c)


@device
def chosen(a, b, selector):
    return permute(a, b, selector)


@device
def there_and_back(bits):
    return float_to_half(half_to_float(bits))


@device
def half(x):
    return float_to_half(x)


def test_instructions_of_one_thread() -> None:
    def words(*values: int) -> npt.NDArray[np.int32]:
        return np.array(values, np.uint32).view(np.int32)

    found = applied(dot, words(0x80FF7F01), words(0x80017F02), words(5), dtype=np.int32)
    assert found[0] == 128 * 128 - 1 + 127 * 127 + 2 + 5
    found = applied(chosen, words(0x33221100), words(0x77665544), words(0x7410), dtype=np.int32)
    assert found[0] == 0x77441100
    bits = words(0, 1, 0x3C00, 0x7BFF, 0x7C00, 0x8001)
    np.testing.assert_array_equal(applied(there_and_back, bits, dtype=np.int32), bits)
    assert applied(half, np.array([1e9], np.float32), dtype=np.int32)[0] == 0x7C00


only_simulated = pytest.mark.skipif(not SIMULATED, reason="what the simulator finds, a GPU does not forgive")


@kernel
def uneven(x):
    if cuda.threadIdx.x < 7:
        cuda.syncthreads()


@kernel
def outside(x):
    load16(x, 16)


@only_simulated
def test_mistakes_of_kernels_are_errors() -> None:
    with pytest.raises(AssertionError, match="7 threads of 32 wait"):
        uneven[1, 32](np.zeros(1))
    with pytest.raises(AssertionError, match="16"):
        outside[1, 32](np.zeros(16, np.uint8))


@kernel
def racing(x):
    words = cuda.shared.array(32, np.int32)
    words[cuda.threadIdx.x] = cuda.threadIdx.x
    x[cuda.threadIdx.x] = words[(cuda.threadIdx.x + 1) % 32]


@only_simulated
def test_a_missing_barrier_shows() -> None:
    x = np.zeros(32, np.int32)
    racing[1, 32](x)
    assert x.tolist() != [(i + 1) % 32 for i in range(32)]
