"""A made-up report with every section, and a headless Chromium spoken to over a pipe."""

import shutil
from collections.abc import Iterator

import pytest
from made_reports import Browser, make_report

from p4q_edge.runtime.evaluation.report import document


@pytest.fixture(scope="session")
def report() -> document.Report:
    return make_report()


@pytest.fixture(scope="session")
def minimal_report() -> document.Report:
    """What a device without images writes: golden samples only."""
    return make_report(chain=None, baselines=(), learning=(), speed=(), debug=None, passed=False)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium here: the page is not looked at. Install it: apt-get install chromium")
    page = Browser(executable, tmp_path_factory.mktemp("chromium"))
    yield page
    page.close()
