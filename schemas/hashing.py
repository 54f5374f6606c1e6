"""Stable hashes of keys, the only source of "random" choices on data.

Every choice (shard, sample, shuffle) is a function of a seed and of keys that
identify the row, so that it is the same on any runner, worker count, bundle
size and file order. XXH3-64 and SplitMix64 are fixed algorithms.
"""

import numpy as np
import pyarrow as pa
import xxhash

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def hash_strings(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Returns the XXH3-64 of each string's UTF-8 bytes; null hashes as ''.

    Args:
      values: string array [n].

    Returns:
      uint64 [n]. Only distinct strings are hashed.
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    encoded = values.cast(pa.binary()).fill_null(b"").dictionary_encode()
    distinct = np.fromiter(
        (
            xxhash.xxh3_64_intdigest(term)
            for term in encoded.dictionary.to_pylist()
        ),
        dtype=np.uint64,
        count=len(encoded.dictionary),
    )
    codes: np.ndarray = encoded.indices.to_numpy(zero_copy_only=False)
    hashed: np.ndarray = distinct[codes]
    return hashed


def mix(seed: int, *keys: np.ndarray) -> np.ndarray:
    """Hashes rows of integer keys under a seed (SplitMix64 finaliser).

    Args:
      seed: any integer.
      *keys: integer arrays of one shape; signed ones are read as bits.

    Returns:
      uint64 array of that shape; a change in any key or in their order gives
      an unrelated number.
    """
    if not keys:
        raise ValueError("`mix` needs at least one array of keys, got none.")
    state = np.full(
        np.shape(keys[0]), seed & 0xFFFFFFFFFFFFFFFF, dtype=np.uint64
    )
    with np.errstate(over="ignore"):
        for key in keys:
            bits = np.asarray(key)
            if bits.dtype != np.uint64:
                bits = bits.astype(np.int64, copy=False).view(np.uint64)
            state = _finalise((state ^ bits) + _GOLDEN_GAMMA)
        return _finalise(state)


def uniform(seed: int, *keys: np.ndarray) -> np.ndarray:
    """Returns float64 in [0, 1) per row of keys, by `mix`'s upper 53 bits."""
    share: np.ndarray = (mix(seed, *keys) >> np.uint64(11)) * 2.0**-53
    return share


def _finalise(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    state ^= state >> np.uint64(31)
    return state
