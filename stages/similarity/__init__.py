"""How far a layer moves what flows through it away from the input: pooling and CKA (Eq. 3 and 4)."""
