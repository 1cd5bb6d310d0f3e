"""TextCheck: what memoryd keeps is text, and what is not says where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoryd.errors import InvalidArgument
from memoryd.write import TextCheck


def check(*pieces: bytes) -> None:
    checking = TextCheck()
    for piece in pieces:
        checking.feed(piece)
    checking.feed(b"", final=True)


def refusal(*pieces: bytes) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        check(*pieces)
    return caught.value


@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), st.integers(0, 99))
def test_any_unicode_text_passes_however_it_is_cut(text: str, cut: int) -> None:
    data = ("x" + text).encode()
    cut %= len(data)
    check(data[:cut], data[cut:])


@pytest.mark.parametrize("cut", range(9))
def test_the_offset_of_a_bad_byte_does_not_depend_on_the_pieces(cut: int) -> None:
    data = "aé€".encode() + b"\xff" + b"z"  # 1 + 2 + 3 bytes, then the bad one
    error = refusal(data[:cut], data[cut:])
    assert (error.reason, error.details["byte_offset"]) == ("NOT_UTF8", "6")
    assert "byte 6" in error.message


def test_a_character_that_the_end_cuts_off_is_refused_where_it_begins() -> None:
    error = refusal(b"abc" + "€".encode()[:2])
    assert (error.reason, error.details["byte_offset"]) == ("NOT_UTF8", "3")


@pytest.mark.parametrize("pieces", [(b"ab\0c",), (b"ab", b"\0c"), (b"ab\0", b"c")])
def test_a_nul_is_binary_and_its_offset_is_named(pieces: tuple[bytes, ...]) -> None:
    error = refusal(*pieces)
    assert (error.reason, error.details["byte_offset"]) == ("BINARY", "2")


@pytest.mark.parametrize("pieces", [(), (b"",), (b" \n\t", b"\r\n"), ("\u2003\u3000".encode(),)])
def test_nothing_but_white_space_is_empty(pieces: tuple[bytes, ...]) -> None:
    assert refusal(*pieces).reason == "EMPTY"


def test_text_after_a_lot_of_white_space_is_text() -> None:
    check(b" " * 1000, b"\n", b"x")
