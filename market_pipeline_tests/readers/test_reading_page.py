"""The page about reading holds what it shows: its blocks run one after another."""

import re
import subprocess
import sys
from pathlib import Path

from market_pipeline_tests.api.conftest import serve_api
from market_pipeline_tests.commands import ROOT
from market_pipeline_tests.system.project import SCRIPTS

TOKEN = "t" * 32
# The bars over HTTP are the reader's, in each of the three libraries.
AGREE = """
expected = read_aggregates("BTC-USD", "1d", today - timedelta(days=20), now)
assert list(bars["close"]) == list(frame["close"]) == list(expected["close"])
assert arrow_bars["close"].to_pylist() == list(expected["close"])
assert bars.index.equals(expected.index) and len(expected) > 15
"""
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_every_block_of_the_reading_page_runs(
    project_environment: dict[str, str], tmp_path: Path
) -> None:
    """On what one ingestion of the mock provider leaves, in a new interpreter."""
    filled = subprocess.run(
        [SCRIPTS / "market-pipeline", "ingest"],
        env=project_environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert filled.returncode == 0, filled.stderr
    blocks = _BLOCK.findall((ROOT / "docs/reading.md").read_text())
    assert len(blocks) >= 7
    with serve_api({**project_environment, "API_TOKEN": TOKEN}, tmp_path) as (client, _):
        api = {"MARKET_API": str(client.base_url), "API_TOKEN": TOKEN}
        ran = subprocess.run(
            [sys.executable, "-c", "\n".join([*blocks, AGREE])],
            env={**project_environment, **api}, cwd=tmp_path,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "the first became known at" in ran.stdout
    assert re.search(r"(9|10) of \1 days are assumed", ran.stdout)
