"""A terminal for a command: what was written to it, and what is left on its screen."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SIGN = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a command showed, and its exit code."""

    code: int
    text: str

    @property
    def screen(self) -> str:
        """Return the lines that are left, after all that was written over."""
        lines, row, column = [""], 0, 0
        for match in _SIGN.finditer(self.text):
            number, action, sign = match.groups()
            if action == "A":
                row = max(0, row - int(number or 1))
            elif action == "K":
                lines[row] = "" if number == "2" else lines[row][:column]
            elif sign == "\r":
                column = 0
            elif sign == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif sign:
                lines[row] = lines[row][:column].ljust(column) + sign + lines[row][column + 1 :]
                column += 1
        return "\n".join(line.rstrip() for line in lines).strip()


def run_in_terminal(
    command: Sequence[str | Path], environment: Mapping[str, str], folder: Path, width: int = 80
) -> Shown:
    """Run a command to its end with all of its output on a terminal of a width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    process = subprocess.Popen(
        command, env={"TERM": "xterm", **environment}, cwd=folder,
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        written = b"".join(_read(terminal.fileno()))
    return Shown(process.wait(), written.decode(errors="replace"))


def _read(terminal: int) -> Iterator[bytes]:
    with contextlib.suppress(OSError):  # Linux' way to say that the other side is closed.
        while part := os.read(terminal, 65_536):
            yield part
