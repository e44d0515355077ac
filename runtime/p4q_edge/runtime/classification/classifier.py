"""Zero-shot classification of images by an engine and its class names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NoReturn, overload

import numpy as np

from p4q_edge.runtime.artifacts import (
    BUILT_IN,
    Card,
    EngineHead,
    Head,
    base_head,
    on_backend,
    read_card,
    require_fit,
    require_name,
    trusted_key_files,
)
from p4q_edge.runtime.classification.loaded_heads import load_heads
from p4q_edge.runtime.classification.predictions import Failure, Prediction, Ranking, Shown, probabilities
from p4q_edge.runtime.classification.preparation import ImageInputs, OnError, Preparation, PreparedImage, RuntimeOptions
from p4q_edge.runtime.classification.teaching import (
    Taught,
    add_classes,
    encode_photographs,
    listed_photographs,
    teach_head,
)
from p4q_edge.runtime.engines import load_engine
from p4q_edge.runtime.errors import CorruptArtifactError, QualityGateError, UsageError
from p4q_edge.runtime.images import (
    ColorOrder,
    ImageLike,
    expand,
    is_single,
    video,
)
from p4q_edge.runtime.verification import ensure_golden
from p4q_edge.runtime.wording import number_of

if TYPE_CHECKING:
    from p4q_edge.runtime.engines import Engine


class ZeroShotClassifier(Shown):
    """An engine with its class names: `ZeroShotClassifier("out.onnx").classify("a.jpg").label`.

    Images are paths, folders, globs, the bytes of image files, open binary files and uploads, PIL images, uint8 arrays
    (H, W, 3) or tensors (3, H, W) (RGB unless `color="bgr"`), or lists and generators of these. Threads may share one
    classifier; a fork may not.
    """

    def __init__(
        self,
        engine: str | Path,
        *,
        heads: str | Path | Iterable[str | Path] | Mapping[str, Head] | None = None,
        device: str = "auto",
        threshold: float | None = None,
        options: RuntimeOptions | None = None,
        trusted_keys: Iterable[str | Path] | None = None,
    ) -> None:
        """Load an engine.

        Args:
            engine: the engine's file; its card is beside it.
            heads: heads beside those stored with the engine: names of these, files (named by their stem), or heads by
                name. The first becomes the active one.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            threshold: least score of a known answer; None takes the thresholds fitted for the head.
            options: how the machine is used; None for the defaults.
            trusted_keys: files of public keys; engine, stored heads and heads from files are loaded only if one of
                them signed each. None takes those of the environment variable P4Q_EDGE_TRUSTED_KEYS.

        Raises:
            InputError: engine, card or head is missing.
            ArtifactError: engine, card and head do not fit each other, or one is not signed by a trusted key.
            QualityGateError: the engine computes wrong values on this machine.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise UsageError(f"threshold must be between 0 and 1, got {threshold}. Leave it out for the fitted one.")
        self._path, self._threshold = Path(engine), threshold
        options = RuntimeOptions() if options is None else options
        self._trusted = trusted = trusted_key_files(trusted_keys)
        self.card: Card = on_backend(read_card(engine, trusted=trusted), options.backend)
        self._preparation = Preparation.of(self.card, options)
        loaded, self._active = load_heads(heads, self._path, self.card, trusted=trusted)
        self._heads: dict[str, EngineHead] = {BUILT_IN: self.card.head, **loaded}
        self._process = os.getpid()
        self._engine: Engine = load_engine(engine, self.card, device=device, threads=options.threads)
        if options.check == "first":
            ensure_golden(self._engine, self.card, name=str(engine), device=device)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of all heads."""
        return tuple(self._heads)

    @property
    def active_head(self) -> str:
        """Name of the head that classifies."""
        return self._active

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names of the active head."""
        return self._heads[self._active].class_names

    def use_head(self, name: str) -> None:
        """Let another head classify from now on.

        Raises:
            UsageError: there is no such head.
        """
        self.head(name)
        self._active = name

    def head(self, name: str | None = None) -> EngineHead:
        """Return a head by name, the active one for None.

        Raises:
            UsageError: there is no such head.
        """
        found = self._heads.get(self._active if name is None else name)
        if found is None:
            raise UsageError(f"no head is named {name!r}; there are {', '.join(self._heads)}.")
        return found

    def keep_head(self, name: str, head: Head) -> None:
        """Let a head be one of this classifier's under a name, in place of one that has it.

        Raises:
            UsageError: the name cannot be that of a head.
            ArtifactError: it was made for another model.
        """
        require_name(name)
        require_fit(head, self.card, name=name)
        self._heads[name] = head

    def drop_head(self, name: str) -> None:
        """Forget a head; if it was active, the built-in one is from now on. Its file, if it has one, stays.

        Raises:
            UsageError: there is no such head, or it is the built-in one.
        """
        self.head(name)
        if name == BUILT_IN:
            raise UsageError(f"the built-in head is part of {self._path} and cannot be removed.")
        if self._active == name:
            self._active = BUILT_IN
        del self._heads[name]

    def __call__(
        self, images: ImageInputs, top_k: int = 5
    ) -> list[dict[str, str | float]] | list[list[dict[str, str | float]]]:
        """Return `[{"label", "score"}, ...]` of one image, or a list of these for several."""
        predictions = self.classify(images, top_k=top_k)
        if isinstance(predictions, Prediction):
            return predictions.to_dict()
        return [prediction.to_dict() for prediction in predictions]

    def classify(
        self, images: ImageInputs, top_k: int = 5, *, color: ColorOrder = "rgb"
    ) -> Prediction | list[Prediction]:
        """Return the prediction of one image, or the list of predictions of several.

        Args:
            images: see the class.
            top_k: number of classes in each answer.
            color: channel order of arrays.

        Raises:
            InputError: an image cannot be used; the message names it.
        """
        predictions = list(self.iterate(images, top_k=top_k, color=color))
        return predictions[0] if is_single(images) else predictions

    @overload
    def iterate(
        self, images: ImageInputs, *, top_k: int = 5, color: ColorOrder = "rgb", on_error: Literal["raise"] = "raise"
    ) -> Iterator[Prediction]: ...

    @overload
    def iterate(
        self, images: ImageInputs, *, top_k: int = 5, color: ColorOrder = "rgb", on_error: Literal["yield"]
    ) -> Iterator[Prediction | Failure]: ...

    def iterate(
        self, images: ImageInputs, *, top_k: int = 5, color: ColorOrder = "rgb", on_error: OnError = "raise"
    ) -> Iterator[Prediction | Failure]:
        """Yield the predictions of any number of images in order, decoding ahead of the engine.

        Args:
            images: see the class.
            top_k: number of classes in each answer.
            color: channel order of arrays.
            on_error: what an image does that cannot be used: `raise` ends everything, `yield` gives a `Failure` in its
                place and goes on.

        Raises:
            InputError: an image cannot be used, and `on_error` is `raise`.
        """
        return (answer for answer, _ in self.answers(images, top_k=top_k, color=color, on_error=on_error))

    def answers(
        self, images: ImageInputs, *, top_k: int = 5, color: ColorOrder = "rgb", on_error: OnError = "raise"
    ) -> Iterator[tuple[Prediction | Failure, np.ndarray | None]]:
        """Do as `iterate`, and yield with each prediction its embedding, (dim,) float32; None with a failure."""
        if top_k < 1:
            raise UsageError(f"top_k must be at least 1, got {top_k}.")
        head = self._heads[self._active]
        ranking = Ranking(
            class_names=head.class_names, calibration=head.calibration, threshold=self._threshold, top_k=top_k
        )
        for batch in self._preparation.batches(images, color=color, on_error=on_error):
            good = [item for item in batch if not isinstance(item, Failure)]
            rows = iter(zip(*self._scores(good, head, ranking), strict=True)) if good else iter(())
            for item in batch:
                if isinstance(item, Failure):
                    yield item, None
                else:
                    scores, embedding = next(rows)
                    yield ranking.predict(scores, source=item[0]), embedding

    def stream(
        self, source: ImageInputs | int, *, top_k: int = 5, max_fps: float | None = None, color: ColorOrder = "rgb"
    ) -> Iterator[tuple[ImageLike, Prediction]]:
        """Yield each image or frame with its prediction, one at a time: the shortest way from picture to answer.

        Args:
            source: a camera number, a video file or an `rtsp://` address (these need OpenCV, and give BGR arrays), or
                anything that `classify` takes.
            top_k: number of classes in each answer.
            max_fps: most images a second. Of a camera or network stream always the newest frame is taken.
            color: channel order of arrays that are not frames of a video.

        Raises:
            EnvironmentNotAbleError: OpenCV is needed and not installed.
            InputError: the source cannot be opened or read.
        """
        video.require_rate(max_fps)
        if video.is_video(source):
            color = "bgr"
            images: Iterator[ImageLike] = video.frames(source, max_fps=max_fps)  # type: ignore[arg-type]
        else:
            images = video.paced(expand(source), max_fps=max_fps)
        for image in images:
            yield image, next(self.iterate(image, top_k=top_k, color=color))

    def embed(self, images: ImageInputs, *, color: ColorOrder = "rgb") -> np.ndarray:
        """Return the embeddings of the active head, (n, dim) float32, L2-normalized; n = 1 for one image."""
        head = self._heads[self._active]
        batches = self._preparation.batches(images, color=color)
        pixels = ([item[1] for item in batch if not isinstance(item, Failure)] for batch in batches)
        rows = [self._answer(np.stack(batch), head)[1] for batch in pixels]
        return np.concatenate([np.empty((0, self.card.embedding_dim), np.float32), *rows])

    def teach(
        self,
        photographs: Mapping[str, ImageInputs],
        *,
        base: str | Path | Head = BUILT_IN,
        add: bool = False,
        unknown: ImageInputs | None = None,
        name: str | None = None,
    ) -> Head:
        """Return a head that was learned from a few photographs of each class: `teach({"cup": [...], "plate": [...]})`.

        Args:
            photographs: images by class name, each as `classify` takes them; 4 to 16 a class are good.
            base: the head to start from: its name, a file, or the head itself. A class that it has by name starts at
                its text embedding, and may have a single photograph; another needs 2 or more.
            add: keep the base head's classes, whose logits stay as they are, and add the classes that it lacks.
                Photographs of classes that it has hold the new ones off.
            unknown: images that show none of the classes; they decide the threshold.
            name: let the head also be one of this classifier's, for `use_head`.

        Raises:
            InputError: photographs that cannot be used, or too few.
            UsageError: both `add` and `unknown`, as an added class keeps the base head's thresholds.
            ArtifactError: the base head was made for another model.
        """
        return self.lesson(photographs, base=base, add=add, unknown=unknown, name=name).head

    def lesson(
        self,
        photographs: Mapping[str, ImageInputs],
        *,
        base: str | Path | Head = BUILT_IN,
        add: bool = False,
        unknown: ImageInputs | None = None,
        name: str | None = None,
    ) -> Taught:
        """Do as `teach`, and return the head together with what is known of it, such as its held-out accuracy."""
        if add and unknown is not None:
            raise UsageError("add=True keeps the thresholds of the base head. Leave out unknown, or calibrate later.")
        if name is not None:
            require_name(name)
        start, base_name = self._base(base)
        listed = listed_photographs(photographs, base=start, add=add, base_name=base_name)
        encoded = encode_photographs(listed, batches=self._readable, run=self._features)
        if add:
            taught = add_classes(encoded, base=start, golden=self.card.golden_samples().features)
        else:
            taught = teach_head(encoded, base=start, unknown=self._strangers(unknown))
        if name is not None:
            self._heads[name] = taught.head
        return taught

    def _base(self, base: str | Path | Head) -> tuple[Head, str]:
        if isinstance(base, Head):
            require_fit(base, self.card, name="given as base")
            return base, "the given base head"
        found = self._heads.get(str(base))
        if isinstance(found, Head):
            return found, f"head {base}"
        return base_head(self._path, base, trusted=self._trusted), f"head {base}"

    def _strangers(self, unknown: ImageInputs | None) -> np.ndarray | None:
        if unknown is None:
            return None
        listed = {"unknown": list(expand(unknown))}
        return encode_photographs(listed, batches=self._readable, run=self._features).features

    def _readable(self, images: Sequence[ImageLike]) -> Iterator[list[PreparedImage | Failure]]:
        return self._preparation.batches(images, color="rgb", on_error="yield")

    def _features(self, batch: np.ndarray) -> np.ndarray:
        return self.run(batch, ("features",))["features"]

    def prepare(self, image: ImageLike, *, color: ColorOrder = "rgb") -> np.ndarray:
        """Return one image as the engine takes it: (3, H, W) uint8, RGB.

        Raises:
            InputError: the image cannot be used.
        """
        return self._preparation.pixels(image, color=color)

    def answer(self, batch: np.ndarray, *, head: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (n, classes) and embeddings (n, dim), float32, of prepared images (n, 3, H, W) uint8.

        Args:
            batch: images of `prepare`.
            head: name of the head that answers; None is the active one.

        Raises:
            UsageError: there is no such head.
        """
        return self._answer(batch, self.head(head))

    def run(self, batch: np.ndarray, outputs: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
        """Return the named outputs of the engine, all of them for None, of prepared images (n, 3, H, W) uint8."""
        self._require_own_process()
        return self._engine.run(batch, outputs)

    def _answer(self, batch: np.ndarray, head: EngineHead) -> tuple[np.ndarray, np.ndarray]:
        self._require_own_process()
        return head.classify(self._engine, batch)

    def close(self) -> None:
        """Release the engine."""
        self._engine.close()

    def __enter__(self) -> ZeroShotClassifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise UsageError(f"a classifier cannot be sent to another process. Load {self._path} there instead.")

    def _scores(self, batch: list[PreparedImage], head: EngineHead, ranking: Ranking) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities (n, classes) and embeddings (n, dim) of prepared images."""
        logits, embedding = self._answer(np.stack([pixels for _, pixels in batch]), head)
        if logits.shape[1] != len(ranking.class_names):
            given, named = number_of(logits.shape[1], "logit"), number_of(len(ranking.class_names), "class")
            raise CorruptArtifactError(f"{self._path} gives {given} for {named}. Build it again.")
        if not np.isfinite(logits).all():
            named = ", ".join(str(source) for source, _ in batch)
            raise QualityGateError(
                f"{self._path} gives values that are not finite for {named}. Check it: p4q-edge selftest ENGINE"
            )
        return probabilities(logits, ranking.calibration), embedding

    def _require_own_process(self) -> None:
        if os.getpid() != self._process:
            raise UsageError(
                f"{self._path} was loaded in process {self._process} and is used in its fork {os.getpid()}, where the "
                "engine's threads do not exist. Load it in each process, or start processes with 'spawn'."
            )
