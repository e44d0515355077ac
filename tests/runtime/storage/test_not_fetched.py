"""Addresses where files belong: what is said of them, wherever one may stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images import load_image
from p4q_edge.runtime.images.inputs import expand
from p4q_edge.runtime.storage import not_fetched

SAID = "https://example.org/a.jpg is an address, and nothing is fetched from networks. Fetch it first: curl -O https"


@pytest.mark.parametrize("text", ["https://example.org/a.jpg", Path("https://example.org/a.jpg")])
def test_an_address_is_told_from_a_file_that_is_not_there(text: str | Path) -> None:
    assert not_fetched(text).startswith(SAID)


def test_the_command_of_an_address_with_signs_of_a_shell_can_be_copied() -> None:
    assert not_fetched("https://a.org/x.jpg?s=1&t=2").endswith("curl -O 'https://a.org/x.jpg?s=1&t=2'")


def test_only_what_curl_takes_is_sent_to_curl() -> None:
    assert not_fetched("s3://bucket/out.p4q").endswith("networks. Copy it to this machine first, and name the copy")


@pytest.mark.parametrize("text", ["a.jpg", "hf:user/name", "C:/photos", "demo:digits", "rtsp://camera/1", "https:", ""])
def test_what_is_no_address(text: str) -> None:
    assert not_fetched(text) == ""


def test_a_folder_may_be_called_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "https:" / "a").mkdir(parents=True)
    assert not_fetched("https://a") == ""


@pytest.mark.parametrize("address", ["https://example.org/a.jpg", "https://example.org/a.jpg?size=[1]*"])
def test_the_python_api_says_it_of_images(address: str) -> None:
    (image,) = expand(address)
    with pytest.raises(InputError, match="nothing is fetched from networks"):
        load_image(image)


@pytest.mark.parametrize(
    "arguments",
    [
        ["selftest", "https://example.org/a.jpg"],
        ["inspect", "https://example.org/a.jpg"],
        ["build", "https://example.org/a.jpg", "--engine", "out.onnx"],
        ["classify", "https://example.org/a.jpg", "b.jpg"],
    ],
)
def test_commands_say_it_of_their_files(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert SAID in capsys.readouterr().err
