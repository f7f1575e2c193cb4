"""JSON objects: every way to be wrong is a ValueError that says what was wrong."""

import pytest

from specbound.theory.json_objects import parse_json, read_object
from specbound.theory.numbers import read_float, read_floats
from specbound.theory.prefix_tree import PrefixTree


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 3000, "is nested too deeply"), ("1" * 5000, "is not JSON"), ("{", "is not JSON"), ("", "is not JSON")],
)
def test_text_that_python_cannot_read_is_refused(text, message):
    with pytest.raises(ValueError, match=f"the thing {message}"):
        parse_json("the thing", text)
    with pytest.raises(ValueError, match=f"the instance {message}"):
        PrefixTree.from_json(text)


def test_an_object_has_its_fields_and_no_others():
    data = {"format": "f", "version": 1, "a": 2}
    assert read_object("it", data, "f", 1, ("a",), ("b",)) == data
    assert read_object("it", '{"version": 1, "a": 2}', None, 1, ("a",))["a"] == 2
    for change, message in (
        ({"format": "g"}, "format is 'g'; want 'f'"),
        ({"version": True}, "version is True"),
        ({"c": 1}, "unknown field 'c'; known are format, version, a, b"),
    ):
        with pytest.raises(ValueError, match=message):
            read_object("it", data | change, "f", 1, ("a",), ("b",))
    with pytest.raises(ValueError, match="field 'z' is missing"):
        read_object("it", data, "f", 1, ("a", "z"))
    with pytest.raises(ValueError, match="it is a JSON list; want an object"):
        read_object("it", "[]", "f", 1, ())


@pytest.mark.parametrize("value", [None, True, "1", [1], float("nan"), float("inf"), 10**400])
def test_a_number_is_finite_and_a_number(value):
    assert read_float("x", 3) == 3.0
    with pytest.raises(ValueError, match="x is"):
        read_float("x", value)
    with pytest.raises(ValueError, match=r"x\[1\] is"):
        read_floats("x", [0.5, value])
