"""What is an address on the Hub, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.hub import HubAddress, is_hub_address, parse_address

NAME = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._]{0,20}[A-Za-z0-9])?", fullmatch=True).filter(lambda x: ".." not in x)
FILE = st.from_regex(r"([A-Za-z0-9][A-Za-z0-9_-]{0,9}/){0,3}[A-Za-z0-9][A-Za-z0-9_-]{0,9}\.p4q", fullmatch=True)


@given(user=NAME, name=NAME, revision=st.none() | NAME, file=st.none() | FILE)
def test_an_address_is_read_as_it_is_written(user: str, name: str, revision: str | None, file: str | None) -> None:
    address = HubAddress(repo=f"{user}/{name}", revision=revision, file=file)
    assert parse_address(str(address)) == address
    assert parse_address(Path(str(address))) == address  # argparse makes a path of it
    assert is_hub_address(str(address))


@pytest.mark.parametrize(
    ("text", "revision", "file"),
    [
        ("hf:a/b", None, None),
        ("hf://a/b", None, None),
        ("hf:a/b@v1.0", "v1.0", None),
        ("hf:a/b@refs/pr/3", "refs/pr/3", None),
        ("hf:a/b@refs/pr/3/x.p4q", "refs/pr/3", "x.p4q"),
        ("hf:a/b@main/sub/x.p4q", "main", "sub/x.p4q"),
        ("hf:a/b/x.p4q", None, "x.p4q"),
    ],
)
def test_parts_of_an_address(text: str, revision: str | None, file: str | None) -> None:
    assert parse_address(text) == HubAddress(repo="a/b", revision=revision, file=file)


@pytest.mark.parametrize(
    "text",
    [
        *("hf:", "hf:a", "hf:a/", "hf:/a", "hf:a/b@", "hf:a/b@-x", "hf:a/b/../c.p4q", "hf:../b", "hf:a/b@../c"),
        *("hf:a/b?x=1", "hf:a b/c", "hf:a--b/c", "hf:.a/b", "hf:a/b#x", "hf:a/b/\x00.p4q", "hf:a/b@main/.p4q"),
    ],
)
def test_what_is_no_address_is_refused_with_what_is_one(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"is not an address on the Hub; expected hf:user/name, hf:user/name@revision or"
    ):
        parse_address(text)


def test_an_address_of_something_else_than_a_bundle() -> None:
    with pytest.raises(UsageError, match=r"does not name a bundle; expected a file that ends in \.p4q"):
        parse_address("hf:a/b/model.safetensors")


@pytest.mark.parametrize("text", ["model.p4q", "hf/a/b", "./hf:a/b", "HF:a/b"])
def test_other_paths_are_no_addresses(text: str) -> None:
    assert not is_hub_address(text)


def test_only_a_whole_digest_names_a_commit() -> None:
    assert parse_address("hf:a/b@" + "0a" * 20).names_a_commit
    assert not parse_address("hf:a/b@0a0a0a0").names_a_commit
    assert not parse_address("hf:a/b").names_a_commit
