"""Images through a network, once: codes and features of both parts, kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stochcl.codes import Codes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from stochcl.api.codec import Codec
    from stochcl.benchmarks.rate_accuracy.cache import Cache
    from stochcl.benchmarks.rate_accuracy.inputs import Inputs, Part
    from stochcl.benchmarks.rate_accuracy.pixels import PixelCode


@dataclass(frozen=True, eq=False)
class Encoded:
    """What a network says of a part: codes, and standardised features, float32, shape (N, V)."""

    codes: Codes
    features: NDArray[np.float32]


def encode_part(codec: Codec, part: Part, cache: Cache, told: Callable[[int, int], None]) -> Encoded:
    """Encode a part, or take what was kept of it."""
    key = cache.key("encoded", codec.model.sha256, codec.precision, codec.device.type, part.fingerprint())
    if (kept := cache.get(key)) is not None:
        arrays, _ = kept
        return Encoded(Codes(arrays["packed"], codec.latents, codec.alphabet), arrays["features"])
    codes, features, done = [], [], 0
    for batch in part.inputs(codec):
        found = codec.encode_prepared(batch)
        codes.append(found.codes.packed)
        features.append(found.features)
        done += len(batch)
        told(done, len(part))
    encoded = Encoded(Codes(np.concatenate(codes), codec.latents, codec.alphabet), np.concatenate(features))
    cache.put(key, {}, packed=encoded.codes.packed, features=encoded.features)
    return encoded


def encode_pixels(
    codec: Codec, part: Part, code: PixelCode, told: Callable[[int, int], None]
) -> tuple[NDArray[np.float32], int, int]:
    """Return the features of images that went through a pixel code, and its bytes, with headers and without."""
    features, size, bare = [], 0, 0
    done = 0
    for batch in part.images(codec):
        out = np.empty_like(batch)
        for i, image in enumerate(batch):
            out[i], whole, least = code.code(image)
            size, bare = size + whole, bare + least
        features.append(codec.encode_pixels(out).features)
        done += len(batch)
        told(done, len(part))
    return np.concatenate(features), size, bare


def both(inputs: Inputs, encode: Callable[[Part], Any]) -> Iterator[Any]:
    """Encode what is fitted to and what is scored on, in this order."""
    yield encode(inputs.train)
    yield encode(inputs.test)
