"""Many kills, and what they did to the data.

``make kills KILLS=500``, or ``python -m market_pipeline_tests.faults.kills 500``; seeds behind that
repeat those alone. It exits with 1 if anything was lost, doubled, invented or left open.
"""

import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from market_pipeline.storage.server import embedded
from market_pipeline_tests.conftest import find_quick_folder, forget_safety
from market_pipeline_tests.faults.kills.theatre import WORK, Played, Theatre, open_theatre


def play_all(theatre: Theatre, kills: int, seeds: Iterable[int]) -> Iterator[Played]:
    """Play seeds until so many kills are done, and say how each went."""
    done = 0
    for seed in seeds:
        yield (one := theatre.play(seed))
        done += one.kills
        said = f"recovered in {one.seconds:.1f} s" if one.is_good else f"WRONG: {one}"
        print(f"{done}/{kills} kills, seed {seed}, {one.kind}: {said}", flush=True)  # noqa: T201
        if done >= kills:
            return


def tell(played: Sequence[Played]) -> None:
    """Print the figures by kind of work, and how each failing seed is repeated."""
    print(f"{'work':10}{' kills  lost  doubled  invented  left open  median s  longest s'}")  # noqa: T201
    for kind in (*WORK, "all"):
        some = [one for one in played if kind in ("all", one.kind)]
        counts = [sum(numbers) for numbers in zip(*(one[2:7] for one in some), strict=True)]
        seconds = [one.seconds for one in some] or [0.0]
        kills, lost, doubled, invented, left_open = counts or [0] * 5
        print(  # noqa: T201
            f"{kind:10}{kills:6}{lost:6}{doubled:9}{invented:10}{left_open:11}"
            f"{statistics.median(seconds):10.1f}{max(seconds):11.1f}"
        )
    for one in played:
        if not one.is_good:
            print(f"repeat: python -m market_pipeline_tests.faults.kills 1 {one.seed}")  # noqa: T201


def main(kills: str, *seeds: str) -> int:
    """Do so many kills, or those of some seeds, on a server of their own; Ctrl-C ends sooner."""
    played: list[Played] = []
    with tempfile.TemporaryDirectory(prefix="mp-kills-", dir=find_quick_folder()) as folder:
        # Open to the account that the server runs as when root starts it.
        Path(folder).chmod(0o755)
        url = embedded.start(Path(folder))
        forget_safety(url)
        with suppress(KeyboardInterrupt), open_theatre(url) as theatre:
            played.extend(play_all(theatre, int(kills), map(int, seeds) if seeds else count()))
    tell(played)
    is_whole = sum(one.kills for one in played) >= int(kills)
    return int(not is_whole or not all(one.is_good for one in played))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
