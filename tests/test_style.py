"""The linter, the formatter and the type checker agree with the whole tree."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["basedpyright", "--pythonpath", sys.executable],
    ],
    ids=" ".join,
)
def test_tools_find_nothing(command):
    answer = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_ci_calls_the_test_command_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("<!-- tests -->")[1]
    command = section.split("```bash\n")[1].split("```")[0].strip()
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
