"""Labels as users write them."""

import pytest

from imgtx_jax.errors import UserError
from imgtx_jax.sampling.labels import parse_label, parse_labels

NAMES = ["cat", "dog", "4", "tree"]


def test_numbers_names_and_none():
  words = ("dog", "1", "4", "none", "3")
  assert [parse_label(word, NAMES, "--label") for word in words] == [1, 1, 2, 4, 3]


@pytest.mark.parametrize("word", ["5", "-1", "bird", "1.0"])
def test_what_is_no_class(word):
  with pytest.raises(UserError, match=f"--label={word} is no class; choose 0 … 3.*'cat', or none"):
    parse_label(word, NAMES, "--label")


@pytest.mark.parametrize("word", ["\u00b2", "9" * 5000])
def test_digits_that_are_no_number_of_a_class(word):
  with pytest.raises(UserError, match="is no class; choose 0 … 3") as refused:
    parse_label(word, NAMES, "--label")
  assert len(str(refused.value)) < 200


def test_labels_in_turn():
  assert list(parse_labels("dog, 3", NAMES, 5)) == [1, 3, 1, 3, 1]
  assert list(parse_labels("", NAMES, 6)) == [0, 1, 2, 3, 0, 1]
  assert parse_labels("none", NAMES, 2).dtype == "int32"
