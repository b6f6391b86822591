"""Random numbers that are the same on every machine: numpy's PCG64, seeded by what they are for."""

import hashlib

import numpy as np

INITIAL_STD = 0.02


def generator(*purpose: object) -> np.random.Generator:
    """PCG64 seeded with the first 16 bytes of SHA-256("chainctl <purpose> …"), little-endian."""
    key = hashlib.sha256(" ".join(("chainctl", *map(str, purpose))).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little")))


def normal(purpose: str, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Initial weights N(0, 0.02²) of `shape`, float32, that depend on `purpose` and `seed` alone."""
    return (generator("initial", purpose, seed).standard_normal(shape) * INITIAL_STD).astype(np.float32)
