"""Which 32 bytes are an Ed25519 public key that only its private key signs for (RFC 8032, section 5.1.3).

    p = 2²⁵⁵ - 19      -x² + y² = 1 + d x² y²      a key is y, 255 bits little-endian, and above it the sign of x

Libraries verify with whatever they can decode.  Under one of the eight points whose order divides 8, a signature that
anybody can write down holds for every message; a second encoding of a point would be a second name of one key.  A point
of the large group plus one of these is let through: nobody can sign for it who could not without.

No library that is used here tells (libsodium's `crypto_core_ed25519_is_valid_point` would); the arithmetic is exact,
and about public values, so that its time may depend on them.
"""

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
SIGN = 2**255
# y of the points of order 8: y² = -x², so that twice the point has y = 0; with the curve's equation d y⁴ + 2 y² = 1.
Y_OF_ORDER_8 = 2707385501144840649318225287225658788936804267575313519463743609750303402022
SMALL_ORDER_Y = frozenset({0, 1, P - 1, Y_OF_ORDER_8, P - Y_OF_ORDER_8})


def weakness(key: bytes) -> str:
    """Why 32 bytes are not to be used as a public key; empty where they can be."""
    y = int.from_bytes(key, "little") % SIGN
    if y % P in SMALL_ORDER_Y:
        return "a point of small order, for which anybody can sign"
    if y >= P:
        return "a second spelling of another key"
    if not is_on_curve(y):
        return "not a point of the curve edwards25519"
    return ""


def is_on_curve(y: int) -> bool:
    """Whether x² = (y² - 1) / (d y² + 1) has a solution mod p, by Euler's criterion.  The denominator is never 0."""
    square = y * y % P
    return pow((square - 1) * (D * square + 1), P // 2, P) in (0, 1)
