"""The environment's real commands, run to their end."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SCRIPTS = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent
# Far more than any command takes on a busy machine, far less than for ever.
COMMAND_SECONDS = 400


def run_command(
    *command: str, environment: Mapping[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, whose ``.env`` counts, with this environment and no more."""
    return subprocess.run(
        [str(SCRIPTS / command[0]), *command[1:]],
        env=dict(environment), cwd=folder, capture_output=True, text=True,
        timeout=COMMAND_SECONDS, check=False,
    )  # fmt: skip
