"""`p4q-edge init`: look through a folder of photographs and write the recipe to start from."""

import argparse
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import msgspec

from p4q_edge.cli.documents import InitDocument
from p4q_edge.data import (
    find_copies,
    images_in_both,
    in_few_lines,
    read_images,
    some_of,
)
from p4q_edge.runtime.cli import Command, Output
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.images import ImageSet, LeftOut, ToDecode, damaged, image_files, same_form
from p4q_edge.runtime.storage import atomic_write, printable, require_writable
from p4q_edge.runtime.wording import number_of

FEW_IMAGES = 8
"""With fewer images a class most of them are either learned from or tested on, and both suffer."""
UNEQUAL = 10
MIN_IMAGES = 2
"""One to learn from and one to judge by."""
_TESTS = ("test", "val", "valid", "validation")
_SHOWN = 5
_RECIPE = """\
# A recipe of P4Q Edge. Build and use it:
#   p4q-edge build --recipe {name} --engine out.onnx      (out.plan on a machine with TensorRT)
#   p4q-edge classify out.onnx {train}
# Every key with its default: p4q-edge build --recipe {name} --engine out.onnx --print-config

[model]
name = "ViT-B-32"            # `p4q-edge models` lists what open_clip has
pretrained = "openai"        # a tag, which is fetched once, or the path of your own weights

[data]
train = {train_toml}
{test_line}
shots = 16                   # images of each class to learn from; classes with fewer give what they have; 0: all
# class_names = ["...", ...]   # other words for {classes}, in this order: {first}
# templates = ["a photo of a {{}}."]
# orient = false             # leave photographs as stored, whatever their EXIF orientation says
"""


@dataclass(frozen=True, kw_only=True)
class InitRequest:
    """What `init` was asked for: the photographs, and the recipe to write."""

    photos: Path
    output: Path = Path("p4q.toml")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", type=Path, help="folder of class folders, or with folders train and test of these")
    parser.add_argument("-o", "--output", type=Path, default=InitRequest.output, help="recipe to write (%(default)s)")


def _request(args: argparse.Namespace) -> InitRequest:
    return InitRequest(photos=args.photos, output=args.output)


def _run(request: InitRequest, output: Output) -> int:
    train, test = find_sets(request.photos)
    require_writable(request.output, force=output.force)
    images = read_images(str(train), key="PHOTOS", keep_empty=True)
    if not len(images):
        read_images(str(train), key="PHOTOS")  # tells of each folder why it has none
        raise InputError(f"{train} has no images; put the photographs of each class into a folder of its name")
    tested = None if test is None else read_images(str(test), key="PHOTOS", keep_empty=True)
    counts = count_classes(images)
    broken, *of_test = damaged(*(ToDecode.of_set(some) for some in (images, tested) if some is not None))
    usable = images.subset(index for index in range(len(images)) if index not in broken)
    left = count_classes(usable)
    unusable = [line for problems in (broken, *of_test) for line in in_few_lines(problems.values())]
    refused = [] if tested is None else advise_test(usable, tested, source=str(test))
    advice = advise(usable, counts) + left_out_of_empty(train, counts) + refused
    atomic_write(request.output, recipe_text(request.output, train, test, counts).encode(), force=output.force)
    document = InitDocument(
        recipe=str(request.output),
        train=str(train),
        test=None if test is None else str(test),
        classes=counts,
        unusable=tuple(unusable),
        advice=tuple(advice),
    )
    width = max(len(printable(name)) for name in counts)
    lines = [f"{printable(name):<{width}}  {count:>5}{_without(count - left[name])}" for name, count in counts.items()]
    lines += [f"cannot be used: {printable(problem)}" for problem in unusable]
    lines += [f"advice: {printable(line)}" for line in advice]
    lines += [
        f"{request.output}  {number_of(len(usable), 'usable image')} of {number_of(len(counts), 'class')}",
        next_step(request.output, unusable, left, refused=bool(refused)),
    ]
    output.write(document=document, text="\n".join(lines))
    return 0


def _without(unusable: int) -> str:
    return f"  ({unusable} cannot be used)" if unusable else ""


def find_sets(photos: Path) -> tuple[Path, Path | None]:
    """Return the folders to learn from and to test on: `photos` itself, or its `train` and `test`.

    Raises:
        UsageError: `photos` is not a directory.
    """
    if not photos.is_dir():
        raise UsageError(
            f"{photos} is not a directory. Put the photographs of each class into a folder of the class's name, and "
            "name the directory that holds these folders."
        )
    train = photos / "train"
    if not train.is_dir():
        return photos, None
    return train, next((photos / name for name in _TESTS if (photos / name).is_dir()), None)


def next_step(recipe: Path, unusable: list[str], counts: dict[str, int], *, refused: bool = False) -> str:
    """Return what to type next; `build` refuses images that cannot be used and classes of one image.

    Args:
        recipe: that was written.
        unusable: what is wrong with images.
        counts: usable images of each class to learn from.
        refused: whether `build` refuses what is advised about the images to test on.
    """
    before = []
    if unusable:
        before.append("repair or remove the files that cannot be used")
    if any(count < MIN_IMAGES for count in counts.values()):
        before.append(f"give each class at least {MIN_IMAGES} images or remove it")
    if len(counts) < 2:
        before.append("add a folder of another class")
    if refused:
        before.append("follow the advice about the images to test on")
    build = f"p4q-edge build --recipe {shlex.quote(str(recipe))} --engine out.onnx"
    return f"next: {' and '.join(before)}, then: {build}" if before else f"next: {build}"


def count_classes(images: ImageSet) -> dict[str, int]:
    """Return how many images each class has."""
    return {name: int((images.labels == label).sum()) for label, name in enumerate(images.class_names)}


def left_out_of_empty(folder: Path, counts: dict[str, int]) -> list[str]:
    """Return of each class without images which files its folder holds that are none, such as those of HEIC."""
    advice: list[str] = []
    empty = [name for name, count in counts.items() if not count]
    if not empty:
        return advice
    folders = {same_form(path.name): path for path in folder.iterdir() if path.is_dir()}
    for name in empty:  # a saved data set names classes that have no folder
        others = LeftOut()
        if name in folders and not image_files(folders[name], others) and others.reasons:
            advice.append(f"left out of {name}, which has no other files: {others}")
    return advice


def advise_test(learned: ImageSet, tested: ImageSet, *, source: str) -> list[str]:
    """Return what `build` would refuse of the images to test on: empty or other classes, and copies of learned ones."""
    advice = []
    empty = [name for name, count in count_classes(tested).items() if not count]
    if empty:
        advice.append(f"no images to test on in class folders of {source}; fill or remove them: {some_of(empty)}")
    try:
        tested.with_classes_of(learned, source=source)
    except InputError as error:
        advice.append(str(error))
    pairs = [f"{name} (as {other})" for name, other in images_in_both(learned, tested)]
    if pairs:
        advice.append(f"images of {source} that are also to learn from; keep each in one place: {some_of(pairs)}")
    return advice


def advise(images: ImageSet, counts: dict[str, int]) -> list[str]:
    """Return what to fix before learning: too few images, very unequal classes, the same image in two classes.

    Args:
        images: those that can be decoded.
        counts: images of each class, with those that cannot.
    """
    advice = []
    usable = count_classes(images)
    unusable = [name for name, count in usable.items() if count < MIN_IMAGES]
    few = [f"{name} ({count})" for name, count in usable.items() if MIN_IMAGES <= count < FEW_IMAGES]
    alone = [name for name in counts if re.fullmatch(r"[\W\d_]+", name)]
    numbered = [name for name in counts if name not in alone and re.match(r"\d+[\W_]+\D", name)]
    if len(counts) < 2:
        advice.append("one class is told from nothing: add a folder of another, such as 'something else'")
    if unusable:
        advice.append(f"a class needs at least {MIN_IMAGES} images; add some or remove the folder: {some_of(unusable)}")
    if numbered:
        advice.append(
            f"names with a number in front go into prompts as they are; give data.class_names: {some_of(numbered)}"
        )
    if alone:
        advice.append(
            f'names that are numbers say nothing in prompts ("a photo of a {alone[0]}."); say in data.class_names what '
            f"they show: {some_of(alone)}"
        )
    if few:
        advice.append(f"fewer than {FEW_IMAGES} images; 16 and some to test on work better: {some_of(few)}")
    most, least = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    if counts[most] >= UNEQUAL * counts[least] > 0:
        advice.append(
            f"very unequal: {most} has {counts[most]}, {least} {counts[least]}; data.shots takes the same number of "
            "each"
        )
    copies = find_copies(images)
    if copies:
        pairs = [f"{one} and {other}" for one, other in copies]
        advice.append(f"the same image in two classes; keep it in the right one: {some_of(pairs)}")
    return advice


def recipe_text(path: Path, train: Path, test: Path | None, counts: dict[str, int]) -> str:
    """Return the recipe with comments; its paths are relative to its own folder where they lie below."""
    folder = path.absolute().parent

    def relative(other: Path) -> str:
        other = other.absolute()
        return str(other.relative_to(folder)) if other.is_relative_to(folder) else str(other)

    names = list(counts)
    test_line = '# test = "..."              # without it a share of each class is kept to test on'
    return _RECIPE.format(
        name=printable(shlex.quote(path.name)),
        train=printable(shlex.quote(relative(train))),
        train_toml=_toml(relative(train)),
        test_line=test_line if test is None else f"test = {_toml(relative(test))}",
        classes=number_of(len(names), "class"),
        first=printable(", ".join(names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else ""),
    )


def _toml(text: str) -> str:
    # JSON's spelling is also TOML's, but for DEL, which JSON leaves unescaped.
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
