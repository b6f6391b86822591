"""The picture: the same bytes every time, valid XML, and its words in it."""

import xml.etree.ElementTree as ElementTree

from schemas.profile import LayerSimilarity
from stages.report.figure import curves_svg
from stages.report.tables import format_bytes, markdown_table

CURVE = [LayerSimilarity(cka=value, low=value - 0.02, high=value + 0.02) for value in (0.93, 0.89, 0.83, 0.65)]


def draw() -> bytes:
    accuracy = {"chain": [0.2, 0.8, 0.95], "linear probe": [0.2, 0.7, 0.9]}
    return curves_svg(CURVE, threshold=0.9, start_layer=1, accuracy=accuracy)


def test_the_same_inputs_give_the_same_picture() -> None:
    assert draw() == draw()


def test_the_picture_is_xml_that_names_what_it_shows() -> None:
    words = "".join(ElementTree.fromstring(draw()).itertext())
    for expected in ("CKA", "T = 0.9", "chain starts here", "linear probe 90.0%", "round"):
        assert expected in words
    assert "<dc:date>" not in draw().decode()


def test_bytes_read_as_people_say_them() -> None:
    found = [format_bytes(count) for count in (0, 1023, 1024, 459_276_288, 3 * 2**30)]
    assert found == ["0 B", "1023 B", "1.0 KiB", "438 MiB", "3.0 GiB"]


def test_a_table_is_markdown() -> None:
    assert markdown_table(("a", "b"), [(1, "x|")]).splitlines()[1].startswith("|---")
