"""umT5's relative positions: which of the bias table's rows belongs to a pair of tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BUCKETS = 32
MAX_DISTANCE = 128


def relative_buckets(length: int) -> npt.NDArray[np.int32]:
    """int32 [L, L]: the bucket of key j seen from query i, by T5's rule (Raffel et al. 2020, bidirectional).

    Half of the buckets are for keys behind. Of each half, the nearer half is exact and the rest grows with the
    logarithm of the distance up to 128.
    """
    half = BUCKETS // 2
    exact = half // 2
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    distance = np.abs(offset)
    # fp32, as in the published code: the logarithm is truncated, and another precision could fall on another side.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    scaled = ratio / np.float32(np.log(MAX_DISTANCE / exact)) * np.float32(half - exact)
    far = np.minimum(exact + scaled.astype(np.int64), half - 1)
    buckets: npt.NDArray[np.int32] = (np.where(distance < exact, distance, far) + half * (offset > 0)).astype(np.int32)
    return buckets
