"""Public keys: every one that `keys new` makes is taken, and none that anybody could sign for, or nobody.

The oracle is the definition: decoding as in RFC 8032, section 5.1.3, and the group law in affine coordinates.
"""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import settings as fast
from hypothesis import strategies as st

from schemas.ed25519 import SMALL_ORDER_Y, D, P, is_on_curve, weakness
from schemas.errors import BadInput
from schemas.trust import Pin, TrustPolicy, parse_roster

L = 2**252 + 27742317777372353535851937790883648493  # order of the large group
IDENTITY = (0, 1)
Point = tuple[int, int]

# Chalkias, Garillot and Nikolaenko: Taming the many EdDSAs (2020), table 1; libsodium refuses them too.
SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
]


def decoded(key: bytes) -> Point | None:
    """The point of a canonical encoding; None for others."""
    number = int.from_bytes(key, "little")
    sign, y = number >> 255, number % 2**255
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    return (x if x % 2 == sign else P - x, y)


def encoded(point: Point) -> bytes:
    x, y = point
    return (y | (x % 2) << 255).to_bytes(32, "little")


def added(one: Point, other: Point) -> Point:
    (a, b), (c, d) = one, other
    product = D * a * b * c * d
    return (
        (a * d + b * c) * pow(1 + product, -1, P) % P,
        (b * d + a * c) * pow(1 - product, -1, P) % P,
    )


def times(count: int, point: Point) -> Point:
    total = IDENTITY
    for bit in bin(count)[2:]:
        total = added(total, total)
        total = added(total, point) if bit == "1" else total
    return total


def torsion() -> set[Point]:
    """The points whose order divides 8: what is left of any point times the order of the large group."""
    left = (times(L, point) for number in range(2, 200) if (point := decoded(number.to_bytes(32, "little"))))
    generator = next(point for point in left if times(4, point) != IDENTITY)
    return {times(count, generator) for count in range(8)}


def test_the_points_of_small_order_are_these_eight() -> None:
    assert len(torsion()) == 8
    assert {y for _, y in torsion()} == SMALL_ORDER_Y
    assert {encoded(point).hex() for point in torsion()} <= set(SMALL_ORDER)


@pytest.mark.parametrize("key", SMALL_ORDER)
def test_no_spelling_of_them_is_a_key(key: str) -> None:
    assert "small order" in weakness(bytes.fromhex(key))


@pytest.mark.parametrize("sign", [0, 1])
def test_no_key_has_a_second_spelling(sign: int) -> None:
    for y in range(P, 2**255):
        assert weakness((y | sign << 255).to_bytes(32, "little"))


@fast(max_examples=50)
@given(st.binary(min_size=32, max_size=32))
def test_every_real_key_is_one(seed: bytes) -> None:
    key = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    assert weakness(key) == ""
    assert decoded(key) is not None


@fast(max_examples=100)
@given(st.binary(min_size=32, max_size=32))
def test_of_any_bytes_it_says_what_the_definition_says(key: bytes) -> None:
    point = decoded(key)
    assert (weakness(key) == "") == (point is not None and times(8, point) != IDENTITY)


def test_the_point_with_x_0_is_on_the_curve() -> None:
    assert is_on_curve(IDENTITY[1])


OFF_CURVE = "02" + "00" * 31
WEAK = ["00" * 32, SMALL_ORDER[6], SMALL_ORDER[-1], OFF_CURVE, "f0" + "ff" * 30 + "7f"]


def test_that_one_is_off_the_curve() -> None:
    assert decoded(bytes.fromhex(OFF_CURVE)) is None


@pytest.mark.parametrize("key", WEAK)
def test_no_such_key_enrols_a_device_or_names_a_coordinator(key: str) -> None:
    key = f"ed25519:{key}"
    with pytest.raises(BadInput, match="no roster") as caught:
        parse_roster(f'[device-07]\nkey = "{key}"\nmax_examples = 5\n', source="roster.toml")
    assert caught.value.values["table"] == "'device-07'"
    assert weakness(bytes.fromhex(key.removeprefix("ed25519:"))) in str(caught.value.values["key"])
    for make in (lambda: Pin(name="office", key=key), lambda: TrustPolicy(signatures="required", coordinator=key)):
        with pytest.raises(ValueError, match="Value error"):
            make()
