"""Which packages run here, at which versions and under which licences."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution

OURS = ("p4q-edge-runtime", "p4q-edge")
UNSTATED = "not stated"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHOWN = 80


@dataclass(frozen=True, kw_only=True)
class PackageLicence:
    """One installed package.

    Attributes:
        name: of the distribution.
        version: that is installed.
        licence: as its own metadata states it.
    """

    name: str
    version: str
    licence: str


def package_licences(roots: tuple[str, ...] = OURS) -> list[PackageLicence]:
    """Return the installed packages that `roots` need, directly or not, themselves included, in alphabetical order."""
    found: dict[str, PackageLicence] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue  # of an extra that is not installed, or of another system
        found[key] = PackageLicence(name=package.name, version=package.version, licence=licence_of(package))
        waiting += [match[0] for requirement in package.requires or () if (match := _NAME.match(requirement))]
    return [found[key] for key in sorted(found)]


def licence_of(package: Distribution) -> str:
    """Return the licence that the metadata of a package states: its expression, classifiers or text."""
    metadata = package.metadata
    expressions = metadata.get_all("License-Expression")
    if expressions:
        return str(expressions[0])
    named = [
        str(entry).rpartition(" :: ")[2]
        for entry in metadata.get_all("Classifier") or ()
        if str(entry).startswith("License :: ") and not str(entry).endswith("OSI Approved")
    ]
    text = " ".join(" ".join(map(str, metadata.get_all("License") or ())).split())
    return ", ".join(named) or text[:_SHOWN] or UNSTATED
