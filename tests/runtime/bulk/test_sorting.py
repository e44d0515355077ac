"""Images in folders by answer: nothing is overwritten, and nothing gets out of the folder."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.bulk.sorting import Sorter, folder_name
from p4q_edge.runtime.errors import P4QEdgeError, UsageError


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file that stands for an image."""
    path = tmp_path / "in" / "a.jpg"
    path.parent.mkdir()
    path.write_bytes(b"first")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_known_and_unknown(image: Path, tmp_path: Path) -> None:
    sorter = Sorter(tmp_path / "out", ["cup", "red plate"])
    assert sorter.put(image, "red plate") == tmp_path / "out/red plate/a.jpg"
    assert sorter.put(image, None) == tmp_path / "out/unknown/a.jpg"
    assert contents(tmp_path / "out") == {"red plate/a.jpg": b"first", "unknown/a.jpg": b"first"}
    assert image.read_bytes() == b"first"


@pytest.mark.parametrize("exists", [True, False])
def test_a_class_folder_that_leads_elsewhere_is_not_followed(image: Path, tmp_path: Path, exists: bool) -> None:
    elsewhere = tmp_path / "elsewhere"
    if exists:
        elsewhere.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cup").symlink_to(elsewhere)
    with pytest.raises(P4QEdgeError, match="cup is a link, and nothing is put where it leads"):
        Sorter(tmp_path / "out", ["cup"]).put(image, "cup")
    assert not exists or contents(elsewhere) == {}


@pytest.mark.parametrize("mode", ["copy", "link"])
def test_nothing_is_overwritten_and_nothing_is_there_twice(image: Path, tmp_path: Path, mode: str) -> None:
    out = tmp_path / "out"
    sorter = Sorter(out, ["cup"], mode=mode)  # type: ignore[arg-type]
    sorter.put(image, "cup")
    assert sorter.put(image, "cup") == out / "cup/a.jpg"
    other = tmp_path / "other" / "a.jpg"
    other.parent.mkdir()
    other.write_bytes(b"second")
    assert sorter.put(other, "cup") == out / "cup/a-2.jpg"
    assert sorter.put(other, "cup") == out / "cup/a-2.jpg"
    assert contents(out) == {"cup/a.jpg": b"first", "cup/a-2.jpg": b"second"}
    assert (out / "cup/a.jpg").is_symlink() == (mode == "link")


def test_a_link_leads_to_the_image_wherever_it_is_followed_from(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Sorter(Path("out"), ["cup"], mode="link").put(Path("in/a.jpg"), "cup")
    assert place.readlink() == image.resolve()


def test_a_link_that_leads_nowhere_is_left_alone(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "out/cup"
    target.mkdir(parents=True)
    (target / "a.jpg").symlink_to(tmp_path / "outside.jpg")
    assert Sorter(tmp_path / "out", ["cup"]).put(image, "cup") == target / "a-2.jpg"
    assert not (tmp_path / "outside.jpg").exists()


@pytest.mark.parametrize("names", [["cup", "CUP"], ["a/b", "a:b"], ["unknown"], ["Unknown."], ["..", "."]])
def test_classes_that_would_share_a_folder_are_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(UsageError, match="would have one folder, .* Rename the class in the head"):
        Sorter(tmp_path, names)


@given(st.text(max_size=200) | st.text(". a\u3000\n", max_size=8))
def test_a_class_is_a_folder_of_its_own_and_no_path(name: str) -> None:
    safe = folder_name(name)
    assert safe not in ("", ".", "..")
    for kind in (PurePosixPath, PureWindowsPath):
        assert kind(safe).parts == (safe,)
    assert len(safe.encode()) <= 240
    assert folder_name(safe) == safe


def test_names_as_long_as_file_systems_take(tmp_path: Path) -> None:
    sorter = Sorter(tmp_path / "out", ["ガラスのコップ" * 40])
    places = []
    for number in range(3):
        image = tmp_path / str(number) / ("ü" * 125 + ".jpg")
        image.parent.mkdir()
        image.write_bytes(bytes([number]))
        places.append(sorter.put(image, "ガラスのコップ" * 40))
    assert [place.read_bytes() for place in places] == [b"\0", b"\1", b"\2"]
    assert [place.suffix for place in places] == [".jpg"] * 3


def test_a_folder_that_cannot_be_written(image: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"a file")
    with pytest.raises(P4QEdgeError, match="cannot put .*a.jpg into .*cup: .* choose another folder"):
        Sorter(tmp_path / "out", ["cup"]).put(image, "cup")
