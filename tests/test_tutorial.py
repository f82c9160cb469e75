"""The tutorial runs, checks every claim, and writes its figures when asked."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_tutorial_runs(tmp_path):
    command = [sys.executable, "-W", "error", "docs/tutorial.py", "--figures", str(tmp_path / "figures")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    claims = (ROOT / "docs" / "tutorial.py").read_text(encoding="utf-8").count("\nclaim(")
    assert claims >= 15 and result.stdout.count("✓") == claims
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "flow.png",
        "random-functions.png",
        "verification.html",
    }
