"""Exported models and what NVIDIA's compiler makes of them; skipped where the compiler cannot be had.

The tools run in processes of their own, where the compiler's log is read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from compiled_contracts import module_of
from compiled_kernels import Compiled


@pytest.fixture(scope="session")
def compile_tool() -> ModuleType:
    """tools/compile_check/golden.py."""
    path = Path(__file__).resolve().parents[3] / "tools" / "compile_check" / "golden.py"
    return module_of("compile_check_golden", path)


@pytest.fixture(scope="session")
def compiled(compile_tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Compiled]:
    """Exports and compiles an architecture, once."""
    done: dict[str, Compiled] = {}

    def compile_once(architecture: str) -> Compiled:
        if architecture not in done:
            model = compile_tool.export(architecture, tmp_path_factory.mktemp(architecture))
            try:
                document = compile_tool.compile_listed(model, *compile_tool.options_for(architecture))
            except FileNotFoundError as unavailable:
                pytest.skip(f"NVIDIA's compiler: {unavailable}")
            text = compile_tool.describe(model, document)
            done[architecture] = Compiled(model=model, document=document, text=text)
        return done[architecture]

    return compile_once
