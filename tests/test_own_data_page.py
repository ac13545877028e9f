"""The Python of the page on own data runs, in the README's eight lines too."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

from own_rows import write_reviews

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/pages/guide/own_data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.M | re.S)


def test_a_dataframe_becomes_labels_in_eight_lines(tmp_path: Path) -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 8
    assert len(write_reviews(tmp_path).read_text().splitlines()) == 201
    # Of the five texts, two are bad.
    code = BLOCKS[0].replace("print(", "answers = (") + "\nprint([answer.label for answer in answers])\n"
    code += "\n".join(BLOCKS[1:])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = next(line for line in done.stdout.splitlines() if line.startswith("["))
    assert ast.literal_eval(shown) == ["good", "bad", "good", "bad", "good"]
    assert (tmp_path / "prompt.safetensors").is_file()
