"""The local server itself: it says where its recordings come from, and serves a whole run."""

import csv
import hashlib
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from market_pipeline.domain.records import Window
from market_pipeline.providers.registry import route_markets
from market_pipeline_tests.replay import RECORDINGS, ReplayServer

ROOT = Path(__file__).resolve().parents[2]


def test_every_recording_has_its_provenance() -> None:
    """Each file is listed with source, licence and checksum, and is what was recorded."""
    with (RECORDINGS / "PROVENANCE.tsv").open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file, delimiter="\t")}
    files = {
        str(path.relative_to(RECORDINGS)): path for path in RECORDINGS.glob("*/*") if path.is_file()
    }
    assert set(files) == set(rows)
    for name, path in files.items():
        assert rows[name]["licence"]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert digest.startswith(rows[name]["sha256_16"]), name


def test_both_providers_are_served_in_the_shape_they_parse() -> None:
    """BTC-USD from CoinGecko and SPX from Yahoo give a month of bars and a price."""
    now = datetime(2015, 1, 30, 19, 30, tzinfo=UTC)
    with ReplayServer(now=now) as server:
        routes = route_markets(["BTC-USD", "SPX"], ["coingecko", "yahoo"], server.environ)
        counts = {}
        for provider, market in routes:
            window = Window(now - timedelta(days=30), now)
            bars = provider.fetch_bars(market, market.intervals[-1], window, now)
            (snapshot,) = provider.fetch_snapshots([market], now)
            counts[market.symbol] = (len(bars), int((~bars["is_final"]).sum()))
            assert snapshot.observed_at == now
    assert counts == {"BTC-USD": (28, 1), "SPX": (20, 1)}


def test_the_command_serves_on_a_port_of_its_own() -> None:
    """It prints the variables that point the providers to it."""
    command = [sys.executable, "-m", "market_pipeline_tests.replay", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            environ = dict(process.stdout.readline().strip().split("=", 1) for _ in range(3))
            answer = httpx.get(f"{environ['COINGECKO_BASE_URL']}/ping", timeout=60, trust_env=False)
            assert answer.json() == {"gecko_says": "(V3) To the Moon!"}
        finally:
            process.terminate()
