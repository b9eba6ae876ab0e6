"""Numbers as people write them: read to the last bit, and refused where two readers would read two."""

import math

import pytest

from cli.flags.values import numbers
from dgad_tk.common import UserError
from dgad_tk.strangers.number_text import NotANumberError, exact, parse_fraction, real, whole


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4.5/255", 4.5 / 255),
        (" 4.5 / 255 ", 4.5 / 255),
        ("8/255", 8 / 255),
        ("0.5/1.0", 0.5),
        ("1e-1", 0.1),
        ("1E-1", 0.1),
        (".5", 0.5),
        ("1.", 1.0),
        ("+0.3", 0.3),
        ("0.000_1", 0.0001),
        ("5e-324", 5e-324),
        ("0.1", 0.1),
        ("2.5e-3/1e-1", 0.025),
    ],
)
def test_a_fraction_is_rounded_once(text: str, value: float) -> None:
    assert parse_fraction(text) == value


def test_whole_levels_keep_their_bits() -> None:
    assert [parse_fraction(f"{level}/255") for level in range(256)] == [level / 255 for level in range(256)]


BAD = ["0.4/0", "0/0", "a/255", "1/2/3", "nan/2", "nan", "inf", "-inf", "1e400/1", "1e400", "/255", "8/", "/", ".", ""]
BAD += ["1__0", "_1", "1_", "٣/255", "0x1/255", "1:30", "8 255", "1,5", "1e9999999999", "9" * 200, "1/1e999e9"]


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize("upper", [1.0, math.inf])
def test_what_is_no_fraction_is_refused(text: str, upper: float) -> None:
    with pytest.raises(UserError, match="eps must be"):
        parse_fraction(text, upper=upper)


@pytest.mark.parametrize("text", ["010", "010/255", "8/0255", "00", "-010", "0_10"])
def test_a_zero_in_front_may_mean_octal(text: str) -> None:
    with pytest.raises(NotANumberError, match="octal") as caught:
        exact(text)
    assert "leave out the zero" in caught.value.hint


@pytest.mark.parametrize(("text", "value"), [("10", 10), ("1e3", 1000), ("1_000", 1000), ("10.0", 10), ("-3", -3)])
def test_whole_numbers(text: str, value: int) -> None:
    assert whole(text) == value


@pytest.mark.parametrize("text", ["1.5", "4/2", "1e-1", "0x10", "1:30", "ten"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(NotANumberError):
        whole(text)


def test_what_is_beyond_a_float_is_refused() -> None:
    with pytest.raises(NotANumberError, match="too large"):
        real("1e400")


def test_values_a_channel_may_be_levels() -> None:
    assert numbers("123.675/255, 0.456,1e-1", "--mean") == [123.675 / 255, 0.456, 0.1]
    with pytest.raises(UserError, match="--mean must be numbers .*leave out the zero"):
        numbers("010,1", "--mean")
