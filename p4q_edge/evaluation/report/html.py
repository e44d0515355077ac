"""The report as one HTML file: style, pictures and thumbnails are inside, nothing is fetched."""

import base64
import importlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from p4q_edge.runtime.errors import EnvironmentNotAbleError
from p4q_edge.runtime.evaluation import ChainReport
from p4q_edge.runtime.evaluation.report import KIND, Report, trial_tables
from p4q_edge.runtime.evaluation.report import formatting as words
from p4q_edge.runtime.stage import Images
from p4q_edge.runtime.storage import printable
from p4q_edge.runtime.wording import number_of, one_or_many

MAX_THUMBNAILS = 24
_THUMBNAIL_PIXELS = 96


def render_html(report: Report, *, thumbnails: Mapping[int, str] | None = None) -> str:
    """Return the page.

    Args:
        report: what to say.
        thumbnails: index of an image to its data URI, see `make_thumbnails`.

    Raises:
        EnvironmentNotAbleError: jinja2 or matplotlib is not installed.
    """
    require_libraries()
    # Only this format needs them; JSON and Markdown are written without the extra.
    import jinja2

    from p4q_edge.evaluation.report import figures

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("p4q_edge.evaluation.report", "."),
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(words.FILTERS, number_of=number_of, one_or_many=one_or_many)
    return environment.get_template("report.html.j2").render(
        report=report,
        kind=KIND,
        pictures=_pictures(report, figures),
        thumbnails=dict(thumbnails or {}),
        changes=_in_words(report.chain, _changed(report.chain)),
        trials=trial_tables(report),
        mistakes=_in_words(report.chain, _mistaken(report.chain)),
        unknown=_in_words(report.chain, report.unknown),
        max_thumbnails=MAX_THUMBNAILS,
    )


def _visible(value: object) -> object:
    """Return a value whose control characters, as of names of files, are shown."""
    # Markup, of our own filters, must stay so.
    return printable(value, keep="\n\t") if type(value) is str else value


def require_libraries() -> None:
    """Raise `EnvironmentNotAbleError` unless everything that the page needs can be imported."""
    for name in ("jinja2", "matplotlib"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise EnvironmentNotAbleError(
                f"an HTML report needs {name}, which is not installed. Run: pip install 'p4q-edge[report]', or name a "
                ".json or .md file"
            ) from error


def make_thumbnails(images: Images, indices: Sequence[int]) -> dict[int, str]:
    """Return a data URI for each index; slices of `images` are uint8 (n, 3, H, W), RGB."""
    return {index: _data_uri(images[index : index + 1][0]) for index in indices}


def _data_uri(image: npt.NDArray[np.uint8]) -> str:
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    picture.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _pictures(report: Report, figures: Any) -> dict[str, str]:
    drawn: dict[str, str] = {}
    if report.baselines:
        drawn["baselines"] = figures.baselines(report.baselines)
    if report.learning:
        drawn["learning"] = figures.learning(report.learning)
    chain = report.chain
    if chain is not None:
        first, last = chain.stages[0], chain.stages[-1]
        drawn["stages"] = figures.accuracy_by_stage(chain)
        drawn["reliability"] = figures.reliability([first, last] if first is not last else [last])
        if last.confusion is not None:
            drawn["confusion"] = figures.confusion(last, chain.class_names)
        if first is not last:
            drawn["class_changes"] = figures.class_changes(first, last, chain.class_names)
    timed = [row for row in report.speed if row.times_ms]
    for batch in dict.fromkeys(row.batch for row in timed):
        rows = [row for row in timed if row.batch == batch]
        drawn[f"latency_{batch}"] = figures.latency_distribution(rows, batch=batch)
    rated = [row for row in report.speed if row.top1 is not None]
    if rated:
        drawn["pareto_size"] = figures.pareto(rated, over="size")
        drawn["pareto_latency"] = figures.pareto(rated, over="latency")
    return drawn


def shown_images(chain: ChainReport, unknown: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the indices of the images that the page shows: mistakes, those called unknown, and changed answers.

    Of each 24 at most.
    """
    kinds = (_mistaken(chain), unknown, _changed(chain))
    return tuple(dict.fromkeys(index for kind in kinds for index in kind[:MAX_THUMBNAILS]))


def _changed(chain: ChainReport | None) -> tuple[int, ...]:
    """Return the images that the first and the last stage name differently."""
    if chain is None or len(chain.stages) < 2:
        return ()
    return chain.changed(chain.stages[0].name, chain.stages[-1].name)


def _mistaken(chain: ChainReport | None) -> tuple[int, ...]:
    """Return the images that the last stage does not name as their label, the most frequent confusions first."""
    if chain is None:
        return ()
    pairs = list(zip(chain.labels, chain.predictions[chain.stages[-1].name], strict=True))
    counts = Counter(pairs)
    wrong = [index for index, (label, answer) in enumerate(pairs) if label != answer]
    return tuple(sorted(wrong, key=lambda index: (-counts[pairs[index]], pairs[index], index)))


def _in_words(chain: ChainReport | None, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Return the label of each of these images with the answers of the first and the last stage."""
    if chain is None:
        return []
    first, last = (chain.predictions[chain.stages[position].name] for position in (0, -1))
    names = chain.class_names
    return [
        {"index": index, "label": names[chain.labels[index]], "first": names[first[index]], "last": names[last[index]]}
        for index in indices
    ]
