import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from schemas import hashing

_MASK = (1 << 64) - 1


def _splitmix64_finaliser(state: int) -> int:
    """Steele, Lea and Flood 2014, figure 19, in Python integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


def test_strings_hash_as_xxh3_of_their_bytes() -> None:
    values = pa.array(["a", None, "häß", "a", ""])
    expected = [
        xxhash.xxh3_64_intdigest(s.encode()) for s in ["a", "", "häß", "a", ""]
    ]
    assert hashing.hash_strings(values).tolist() == expected
    chunked = pa.chunked_array([values.slice(0, 2), values.slice(2)])
    assert hashing.hash_strings(chunked).tolist() == expected


@given(st.integers(), st.integers(-(2**63), 2**63 - 1), st.integers(0, _MASK))
def test_mix_is_splitmix64_over_the_keys_in_order(seed, signed, unsigned):
    gamma = 0x9E3779B97F4A7C15
    state = seed & _MASK
    for key in (signed & _MASK, unsigned):
        state = _splitmix64_finaliser(((state ^ key) + gamma) & _MASK)
    received = hashing.mix(
        seed,
        np.array([signed], dtype=np.int64),
        np.array([unsigned], dtype=np.uint64),
    )
    assert received.tolist() == [_splitmix64_finaliser(state)]


def test_uniform_fills_the_unit_interval_evenly() -> None:
    draws = hashing.uniform(7, np.arange(100_000))
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    # 20 cells of 5,000 expected; sd is sqrt(5000 * .95) = 69.
    cells = np.bincount((draws * 20).astype(int), minlength=20)
    assert abs(cells - 5_000).max() < 5 * 69


def test_mix_refuses_no_keys() -> None:
    with pytest.raises(ValueError, match="at least one array"):
        hashing.mix(1)
