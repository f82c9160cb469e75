"""The package as a newcomer meets it: imports, names, and the README's code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tangency

ROOT = Path(__file__).resolve().parents[1]


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)


def test_importing_loads_no_optional_package_and_no_plotting():
    heavy = "flax, torch, dask, matplotlib, plotly, haiku"
    result = run(
        f"import sys, tangency; tangency.limit; tangency.NTKClassifier; tangency.models; "
        f"print([m for m in {heavy.split(', ')} if m in sys.modules])"
    )
    assert result.stdout.strip() == "[]", result.stderr


def test_functions_keep_their_names_whichever_room_is_imported_first():
    code = (
        "import tangency.limit.duals, tangency.gram.matrix, tangency as tg; print(tg.limit.__name__, tg.gram.__name__)"
    )
    assert run(code).stdout.split() == ["limit", "gram"]


def test_every_public_name_exists():
    for name in dir(tangency):
        assert getattr(tangency, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'limits'"):
        tangency.limits  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    result = run("import warnings; warnings.simplefilter('error')\n" + code)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "(1347, 450)" in lines[0]
    assert float(lines[-1]) > 0.98
