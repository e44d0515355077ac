"""`classify` into files, `embed` and `search`."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from read_documents import read_document

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.artifacts.card import read_card
from p4q_edge.runtime.bulk.embeddings import adapter_digest, read_embeddings, write_embeddings
from p4q_edge.runtime.cli.bulk_documents import ClassifiedDocument, EmbedDocument, SearchDocument
from p4q_edge.runtime.cli.commands import classify, search

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of eight different pictures."""
    folder, random = tmp_path / "pictures", np.random.default_rng(5)
    folder.mkdir()
    for number in range(8):
        small = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        small.resize((40, 30), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def test_a_table_and_folders(run: Run, tiny_engine: Path, pictures: Path, tmp_path: Path) -> None:
    table, sorted_into = tmp_path / "out.csv", tmp_path / "sorted"
    (pictures / "9.png").write_bytes(b"damaged")
    options = ("--output", table, "--sort-into", sorted_into, "--threshold", "0.6")
    code, out, err = run("classify", tiny_engine, pictures, *options)
    assert code == 1
    assert "9.png is not one of JPEG" in err
    with ZeroShotClassifier(tiny_engine, threshold=0.6) as classifier:
        expected = {str(pictures / f"{n}.png"): classifier.classify(pictures / f"{n}.png") for n in range(8)}
    with table.open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert len(rows) == 9
    for path, prediction in expected.items():
        assert (rows[path]["label"], rows[path]["known"]) == (prediction.label, str(prediction.known).lower())  # type: ignore[union-attr]
        folder = prediction.label if prediction.known else "unknown"  # type: ignore[union-attr]
        assert (sorted_into / folder / Path(path).name).read_bytes() == Path(path).read_bytes()
    known = sum(prediction.known for prediction in expected.values())  # type: ignore[union-attr]
    assert 0 < known < 8, "both kinds are shown"
    assert out == f"{table} and {sorted_into}  {known} images known, {8 - known} unknown, 1 not usable\n"
    assert rows[str(pictures / "9.png")]["error"].startswith(str(pictures / "9.png"))
    assert sum(path.is_file() for path in sorted_into.rglob("*")) == 8
    code, out, _ = run("classify", tiny_engine, pictures, *options, "--force", "--skip-errors", "--json")
    assert code == 0
    document = read_document(out, ClassifiedDocument)
    assert (document.known, document.unknown, document.failed) == (known, 8 - known, 1)
    assert sum(path.is_file() for path in sorted_into.rglob("*")) == 8, "once more puts nothing there twice"


@pytest.mark.parametrize("below", ["", "sorted", "a/b"])
def test_images_are_not_sorted_into_the_folder_that_they_lie_in(
    run: Run, tiny_engine: Path, pictures: Path, below: str
) -> None:
    before = sorted(pictures.rglob("*"))
    code, _, err = run("classify", tiny_engine, pictures, "--sort-into", pictures / below)
    assert code == 2
    assert f"--sort-into {pictures / below} lies in {pictures}" in err
    assert "Name a folder outside of it" in err
    assert sorted(pictures.rglob("*")) == before


def test_images_of_a_pattern_are_not_sorted_to_where_it_finds_them(
    run: Run, tiny_engine: Path, pictures: Path, tmp_path: Path
) -> None:
    code, _, err = run("classify", tiny_engine, f"{pictures}/**/*.png", "--sort-into", pictures / "sorted")
    assert (code, (pictures / "sorted").exists()) == (2, False)
    assert f"--sort-into {pictures / 'sorted'} lies in {pictures}/**/*.png" in err
    code, _, _ = run(
        "classify", tiny_engine, f"{pictures}/**/*.png", "--sort-into", tmp_path / "sorted", "--skip-errors"
    )
    assert (code, (tmp_path / "sorted").exists()) == (0, True)


def test_embeddings_of_a_table_are_those_of_the_api(
    run: Run, tiny_engine: Path, pictures: Path, tmp_path: Path
) -> None:
    table = tmp_path / "out.jsonl"
    assert run("classify", tiny_engine, pictures, "--output", table, "--embeddings")[0] == 0
    rows = [json.loads(line)["embedding"] for line in table.read_text().splitlines()]
    with ZeroShotClassifier(tiny_engine) as classifier:
        np.testing.assert_allclose(rows, classifier.embed(pictures), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--stream", "--json", "--output", "a.csv"), "--stream writes answers to stdout"),
        (("--embeddings",), "--embeddings adds a column to a table: add --output"),
        (("--link",), "--link says how --sort-into puts images"),
        (("-", "--sort-into", "out"), "an image on stdin has no name to be sorted by"),
        (("--output", "a.txt"), "expected a table ending in .csv"),
    ],
)
def test_what_contradicts_itself(run: Run, tiny_engine: Path, photo: Path, options: tuple[str, ...], said: str) -> None:
    code, out, err = run("classify", tiny_engine, photo, *options)
    assert code == 2
    assert out == "" or "--json" in options
    assert said in err


def test_a_bar_stands_where_it_is_worth_it_and_between_no_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = classify.ClassifyRequest(engine=Path("e"), images=("a",))
    into = classify.ClassifyRequest(engine=Path("e"), images=("a",), table=tmp_path / "a.csv")
    many, few = range(51), range(50)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert [classify._has_bar(request, count) for request in (plain, into) for count in (few, many)] == [
        *(False, False),
        *(False, True),
    ]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert classify._has_bar(plain, many)


def test_embed_and_search(run: Run, tiny_engine: Path, pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "e.npz"
    code, out, _ = run("embed", tiny_engine, pictures, "-o", file)
    assert code == 0
    assert out == f"{file}  8 embeddings of 16 numbers, head built-in\n"
    code, out, _ = run("search", file, "Circle ", "--engine", tiny_engine, "--top-k", "3", "--json")
    document = read_document(out, SearchDocument)
    assert (document.by, document.images) == ("class circle of head built-in", 8)
    with ZeroShotClassifier(tiny_engine) as classifier:
        cosines = classifier.embed(pictures) @ classifier.card.head_rows().text_embedding[0]
    np.testing.assert_allclose([one.cosine for one in document.found], np.sort(cosines)[::-1][:3], atol=1e-5)
    assert document.found[0].path == str(pictures / f"{int(np.argmax(cosines))}.png")
    _, out, _ = run("search", file, "--like", pictures / "4.png", "--engine", tiny_engine, "--top-k", "1")
    assert out == f"1.000  {pictures / '4.png'}\n"


def test_images_and_words_of_different_adapters_are_not_compared(
    run: Run, tiny_engine: Path, pictures: Path, tmp_path: Path
) -> None:
    file = tmp_path / "e.npz"
    run("embed", tiny_engine, pictures, "-o", file)
    made = read_embeddings(file)
    assert made.adapter_sha256 == adapter_digest(read_card(tiny_engine).head_rows())
    for words in (["circle"], ["--like", pictures / "4.png"]):
        write_embeddings(file, replace(made, adapter_sha256="0" * 64), force=True)
        code, _, err = run("search", file, *words, "--engine", tiny_engine)
        assert code == 4
        assert "went through another adapter than that of head built-in of" in err
        write_embeddings(file, replace(made, adapter_sha256=""), force=True)  # as earlier versions wrote it
        assert run("search", file, *words, "--engine", tiny_engine)[0] == 0
    code, _, err = run("search", file, " ", "--engine", tiny_engine)
    assert (code, "expected words for what the images should show, got an empty text" in err) == (2, True)


def test_a_head_that_a_file_of_embeddings_names_is_no_path(
    run: Run, tiny_engine: Path, pictures: Path, tmp_path: Path
) -> None:
    file, head = tmp_path / "e.npz", tmp_path / "foreign.safetensors"
    run("embed", tiny_engine, pictures, "-o", file)
    head.write_bytes(read_card(tiny_engine).head_rows().to_bytes())
    write_embeddings(file, replace(read_embeddings(file), head=str(head)), force=True)
    code, _, err = run("search", file, "circle", "--engine", tiny_engine)
    assert code == 2
    assert "which " + str(tiny_engine) + " lacks; it has built-in. Name its file: --head FILE" in err
    assert run("search", file, "circle", "--engine", tiny_engine, "--head", head)[0] == 0


def test_embed_goes_past_a_damaged_image(run: Run, tiny_engine: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "0.png").write_bytes(b"damaged")
    file = tmp_path / "e.npz"
    code, out, err = run("embed", tiny_engine, pictures, "-o", file, "--json")
    assert code == 1
    assert "1 of 8 images could not be used. Repair or remove it, or add --skip-errors" in err
    document = read_document(out, EmbedDocument)
    assert (document.images, document.failed) == (7, 1)
    code, _, err = run("embed", tiny_engine, pictures, "-o", file, "--force", "--skip-errors")
    assert (code, "warning: 1 of 8 images could not be used\n" in err, "--skip-errors" in err) == (0, True, False)
    assert "error:" not in err  # as nothing failed that may not
    for path in pictures.iterdir():
        path.write_bytes(b"damaged")
    code, _, err = run("embed", tiny_engine, pictures, "-o", tmp_path / "none.npz")
    assert code == 2
    assert "none of the 8 images could be used" in err


def test_plain_embeddings_are_the_features_alone(run: Run, tiny_engine: Path, pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "e.npz"
    code, out, _ = run("embed", tiny_engine, pictures, "-o", file, "--plain")
    assert code == 0
    assert out.endswith("head plain\n")
    with ZeroShotClassifier(tiny_engine) as classifier:
        paths = sorted(pictures.iterdir())
        features = classifier.run(np.stack([classifier.prepare(path) for path in paths]), ("features",))["features"]
    with np.load(file) as arrays:
        np.testing.assert_allclose(
            arrays["embedding"], features / np.linalg.norm(features, axis=1, keepdims=True), atol=1e-5
        )
    _, out, _ = run("search", file, "--like", pictures / "4.png", "--engine", tiny_engine, "--top-k", "1")
    assert out == f"1.000  {pictures / '4.png'}\n"
    code, _, err = run("search", file, "circle", "--engine", tiny_engine)
    assert code == 2
    assert "'circle' is not a class of head plain, which has none. Other words need the toolkit and the recipe" in err
    code, _, err = run("embed", tiny_engine, pictures, "-o", file, "--plain", "--head", "x")
    assert code == 2
    assert "--plain uses no adapter" in err


def test_other_words_are_read_by_the_toolkit(
    run: Run, tiny_engine: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, asked = tmp_path / "e.npz", []
    run("embed", tiny_engine, pictures, "-o", file, "--plain")
    third = read_embeddings(file).rows[3]

    def read(recipe: Path, text: str, *, weights_sha256: str) -> np.ndarray:
        asked.append((recipe, text, weights_sha256))
        return third

    monkeypatch.setattr(search, "has_toolkit", lambda: True)
    monkeypatch.setattr(search, "toolkit_function", lambda name, missing: {"text_embedding": read}[name])
    recipe = tmp_path / "p4q.toml"
    _, out, err = run("search", file, "a red cup", "--engine", tiny_engine, "--recipe", recipe, "--json")
    document = read_document(out, SearchDocument)
    assert (document.by, document.found[0].path) == ("the text tower", str(pictures / "3.png"))
    assert asked == [(recipe, "a red cup", read_card(tiny_engine).model.weights_sha256)]
    assert err == ""
    tiny_engine.with_suffix(".run").mkdir()
    (tiny_engine.with_suffix(".run") / "recipe.toml").touch()
    run("embed", tiny_engine, pictures, "-o", file, "--force")
    _, _, err = run("search", file, "a red cup", "--engine", tiny_engine)
    assert asked[1][0] == tiny_engine.with_suffix(".run") / "recipe.toml"
    assert "the images went through the adapter of head built-in" in err


def test_what_search_refuses(run: Run, tiny_engine: Path, pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "e.npz"
    run("embed", tiny_engine, pictures, "-o", file)
    for arguments, code, said in (
        (
            (file, "a red cup", "--engine", tiny_engine),
            2,
            "'a red cup' is not a class of head built-in, which has circle",
        ),
        ((file, "--engine", tiny_engine), 2, "search needs either words or --like IMAGE"),
        ((file, "circle", "--engine", tiny_engine, "--top-k", "0"), 2, "--top-k must be at least 1"),
        ((file, "circle", "--engine", tiny_engine, "--head", "none"), 2, "has no head 'none'"),
        ((tmp_path / "none.npz", "circle", "--engine", tiny_engine), 2, "cannot read the embeddings"),
    ):
        found, out, err = run("search", *arguments)
        assert (found, out) == (code, ""), err
        assert said in err
    with np.load(file) as arrays:
        np.savez(tmp_path / "other.npz", **{**arrays, "weights_sha256": np.array("f" * 64)})
    code, _, err = run("search", tmp_path / "other.npz", "circle", "--engine", tiny_engine)
    assert code == 4
    assert "was made with another model" in err
