"""Names of classes: the order of folders and labels, and which names of two sources mean the same class."""

from __future__ import annotations

import difflib
import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.wording import number_of, one_or_many

logger = logging.getLogger(__name__)

_DIGITS = re.compile("([0-9]+)")
_SHOWN_PAIRS = 24
_SHOWN_UNKNOWN = 5


def in_label_order(names: Iterable[str]) -> list[str]:
    """Return each name once, sorted as people do: digits by their value, so that `2` comes before `10`."""
    return sorted(set(names), key=_natural_key)


def same_form(name: str) -> str:
    """Return a name in the one Unicode form (NFC) in which names are compared; macOS writes folders in another.

    Bytes of a file name that are not UTF-8, as of old archives, become escapes such as `\\udce9`.
    """
    return unicodedata.normalize("NFC", name.encode("utf-8", "backslashreplace").decode())


def match_classes(
    found: Sequence[str], class_names: Sequence[str], *, source: str, other_names: Sequence[str] = ()
) -> tuple[int, ...]:
    """Return the index of each class of a data set among the known ones. Names alone decide, never the order.

    Args:
        found: names of the data set's classes.
        class_names: the known classes.
        source: the data set, in words.
        other_names: other names of the known classes in the same order, such as the folders they were learned from.

    Raises:
        InputError: a name is unknown, or two names are the same one.
    """
    index = {same_form(name): position for position, name in enumerate(other_names)}
    index.update({same_form(name): position for position, name in enumerate(class_names)})
    if unknown := [name for name in found if same_form(name) not in index]:
        raise InputError(_unknown(unknown, class_names, source=source))
    seen: dict[int, str] = {}
    for name in found:
        position = index[same_form(name)]
        if position in seen:
            raise InputError(f"{source} has {seen[position]!r} and {name!r}, which are one class. Put them together.")
        seen[position] = name
    return tuple(seen)


def pair_class_names(found: Sequence[str], given: Sequence[str], *, source: str, key: str) -> tuple[int, ...]:
    """Return which given name each class of a data set gets; for names that a user wrote for these very classes.

    Names decide where they are the same words in any order. Else they are other words for the classes in label order:
    the log shows each pair.

    Args:
        found: names of the data set's classes, in label order.
        given: the names to use.
        source: the data set, in words.
        key: what gave the names, such as a key of the recipe.

    Raises:
        InputError: the numbers differ, or some names are known and stand elsewhere.
    """
    index = {same_form(name): position for position, name in enumerate(given)}
    unknown = [name for name in found if same_form(name) not in index]
    if len(given) != len(found):
        reason = f"; {unknown[0]!r} is not among the names" if unknown else ""
        raise InputError(
            f"{key}: {number_of(len(given), 'class name was', 'class names were')} given for "
            f"{number_of(len(found), 'class')} of {source} "
            f"({', '.join(found[:3])}, ...){reason}; give one name for each class, in label order"
        )
    if not unknown:
        return match_classes(found, given, source=source)
    for place, name in enumerate(found):
        other = index.get(same_form(name), place)
        if other != place:
            raise InputError(
                f"{key}: class {name!r} is number {place} of {source} and number {other} of the names, and other "
                "classes have no name of theirs; name all classes as the images do, or all by other words"
            )
    pairs = [f"{name!r} is {word!r}" for name, word in zip(found, given, strict=True)]
    more = f", and {len(pairs) - _SHOWN_PAIRS} more" if len(pairs) > _SHOWN_PAIRS else ""
    logger.info("%s, in label order: %s%s", key, ", ".join(pairs[:_SHOWN_PAIRS]), more)
    return tuple(range(len(found)))


def missing_classes(labels: Iterable[int], class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the known classes that a data set has no images of.

    Args:
        labels: of its images, indices into the class names.
        class_names: all that are known.
    """
    found = set(labels)
    return tuple(name for position, name in enumerate(class_names) if position not in found)


def warn_of_classes(labels: Sequence[int], class_names: Sequence[str], *, source: str) -> None:
    """Tell in one line, if so, that images to test on are all of one class, or of which classes there are none.

    Args:
        labels: of the images, indices into the class names; without any nothing is told.
        class_names: all that are known.
        source: what the line calls the images.
    """
    missing = missing_classes(labels, class_names)
    if not labels or not missing:
        return
    if len(missing) == len(class_names) - 1:
        logger.warning(
            "%s: %s of the class %r. Accuracy on %s tells how often that class is named, and not "
            "whether classes are told apart: an engine that always says %r gets 100 %%. Add images of other classes",
            source,
            one_or_many(len(labels), "its one image is", f"all {len(labels)} images are"),
            class_names[labels[0]],
            one_or_many(len(labels), "it", "them"),
            class_names[labels[0]],
        )
        return
    shown = ", ".join(missing[:_SHOWN_PAIRS])
    more = f" and {len(missing) - _SHOWN_PAIRS} more" if len(missing) > _SHOWN_PAIRS else ""
    logger.warning(
        "%s has no images of %d of %s: %s%s",
        source,
        len(missing),
        number_of(len(class_names), "class"),
        shown,
        more,
    )


def _unknown(names: Sequence[str], class_names: Sequence[str], *, source: str) -> str:
    known = ", ".join(class_names[:4]) + (", ..." if len(class_names) > 4 else "")
    of_known = f"the {number_of(len(class_names), 'known class')} ({known})"
    if len(names) == 1:
        likely = _likely(names[0], class_names)
        hint = f"did you mean {likely!r}? " if likely else ""
        return (
            f"{source} has the class {names[0]!r}, which is not one of {of_known}; {hint}"
            "classes are matched by name: rename it, or remove it from the data"
        )
    shown = names[:_SHOWN_UNKNOWN]
    listed = [
        f"{name!r} (did you mean {likely!r}?)" if (likely := _likely(name, class_names)) else repr(name)
        for name in shown
    ]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    joined = ", ".join(listed) + more if more else f"{', '.join(listed[:-1])} and {listed[-1]}"
    return (
        f"{source} has the classes {joined}, which are not among {of_known}; classes are matched by name: rename them, "
        "or remove them from the data"
    )


def _likely(name: str, class_names: Sequence[str]) -> str:
    """Return the known class that a name comes near to, whatever the case; empty if there is none."""
    folded = {known.casefold(): known for known in class_names}
    near = difflib.get_close_matches(name.casefold(), folded, n=1)
    return folded[near[0]] if near else ""


def _natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    parts = _DIGITS.split(same_form(name))
    key = []
    for place, part in enumerate(parts):
        if place % 2:
            # Compared by length first: as numbers, but of any length.
            number = part.lstrip("0")
            key.append((0, len(number), number))
        elif part:
            key.append((1, 0, part))
    return key, name
