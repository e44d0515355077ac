"""Words beside counts in what users read: one image, two images."""

from __future__ import annotations


def number_of(count: int | str, one: str, many: str = "") -> str:
    """Return a count and what is counted: `1 image`, `3 images`, `2 classes`.

    Args:
        count: how many; in digits where it is formatted already.
        one: the words for one.
        many: the words for any other count; the last word of `one` in the plural, if left out.
    """
    return f"{count} {one_or_many(count, one, many)}"


def one_or_many(count: int | str, one: str, many: str = "") -> str:
    """Return the words that go with a count, without the count: `has` for 1, `have` for any other.

    Args:
        count: how many; in digits where it is formatted already.
        one: the words for one.
        many: the words for any other count; the last word of `one` in the plural, if left out.
    """
    if str(count) == "1":
        return one
    hissing = one.endswith(("s", "x", "ch", "sh")) and not one.endswith("epoch")
    return many or one + ("es" if hissing else "s")
