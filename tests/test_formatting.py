"""How numbers, sizes and near names are written."""

import pytest

from tinyscale.formatting import compact, data_size, distinct, nearest, printable


@pytest.mark.parametrize(
    ("value", "text"), [(1234567, "1.23M"), (999999, "1M"), (2e9, "2B"), (512, "512"), (1e18, "1e+18")]
)
def test_numbers_are_shortened_as_people_say_them(value: float, text: str) -> None:
    assert compact(value) == text


def test_sizes_are_in_bytes() -> None:
    assert (data_size(123), data_size(2.5e6), data_size(8e10)) == ("123B", "2.5MB", "80GB")


@pytest.mark.parametrize(
    ("values", "texts"), [((1.99, 2.04), ("1.99", "2.04")), ((2.0, 5.0), ("2.0", "5.0")), ((3.0, 3.0), ("3.0", "3.0"))]
)
def test_two_errors_are_written_with_the_digits_that_tell_them_apart(
    values: tuple[float, float], texts: tuple[str, str]
) -> None:
    assert distinct(*values) == texts


def test_a_near_name_is_offered_and_a_far_one_is_not() -> None:
    assert nearest("d_modle", ["model.d_model", "model.n_layers"]) == "; nearest: model.d_model"
    assert nearest("zzz", ["model.d_model"]) == ""


def test_control_characters_are_spelt_out_and_all_other_text_stays() -> None:
    assert printable("a\x1b[31m \x07 \u202e \ud800 b\r") == r"a\x1b[31m \x07 \u202e \ud800 b\r"
    plain = "Loss\tof [/x] :smile: \u00e9\u0141 \u4e2d\u6587 \u200d\n"
    assert printable(plain) == plain
