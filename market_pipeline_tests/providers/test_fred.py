"""FRED's CSV of the S&P 500, against its recorded answer."""

from datetime import timedelta

import pandas as pd
import pytest

from market_pipeline.domain.errors import PermanentProviderError
from market_pipeline.domain.intervals import Interval
from market_pipeline.providers.fred import FredProvider, parse_bars
from market_pipeline_tests.providers.clocks import QUICK, FakeTime
from market_pipeline_tests.providers.moments import LATER, at, between, find
from market_pipeline_tests.replay import ReplayServer, answer_with, read_recording

CSV = "fred/fredgraph_sp500_2016-02-12_2026-02-11.csv"
SPX = find(FredProvider({}), "SPX")
PLAIN = "text/csv"


def make_provider(server: ReplayServer, fake_time: FakeTime) -> FredProvider:
    """Return a provider that asks the local server."""
    return FredProvider(server.environ, clocks=fake_time.clocks, limits=QUICK)


def test_ten_recorded_years_are_closes_of_sessions() -> None:
    """2,514 closes; the 95 holidays are empty cells; a half day ends at 18:00 UTC."""
    bars = parse_bars(read_recording(CSV), SPX, at("2026-03-01"))
    assert len(bars) == 2514
    assert bars["is_final"].all()
    first = bars.iloc[0]
    assert (first["open_time"], first["close"]) == (pd.Timestamp("2016-02-12", tz="UTC"), 1864.78)
    assert (bars["open"] == bars["close"]).all()
    assert bars["source_kind"].unique().tolist() == ["points"]
    assert bars["volume"].isna().all()
    ends = bars.set_index("open_time")["close_time"]
    assert ends[pd.Timestamp("2021-11-26", tz="UTC")] == pd.Timestamp("2021-11-26T18:00", tz="UTC")


@pytest.mark.parametrize(("now", "is_final"), [("14:59", False), ("15:00", True)])
def test_a_close_is_final_on_the_next_day(now: str, is_final: bool) -> None:
    """18 hours after the bell, as FRED may publish it in the evening or in the morning."""
    body = b"observation_date,SP500\n2026-02-11,6941.47\n"
    bars = parse_bars(body, SPX, at(f"2026-02-12T{now}"))
    assert bars["is_final"].tolist() == [is_final]


def test_an_older_head_and_marks_of_missing_values_are_understood() -> None:
    """``DATE`` is the head of older copies; a dot means missing in FRED's other answers."""
    body = b"DATE,SP500\r\n2024-01-02,4742.83\r\n2024-01-01,.\r\n"
    assert parse_bars(body, SPX, LATER)["close"].tolist() == [4742.83]
    assert parse_bars(b"DATE,SP500\n", SPX, LATER).empty


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>a page of another kind</html>",
        b"observation_date,DJIA\n2024-01-02,37715.04\n",
        b"observation_date,SP500\n2024-01-02,4742.83,1\n",
        b"observation_date,SP500\n2024-01-02,many\n",
        b"observation_date,SP500\n2024-01-02,nan\n",
        b"observation_date,SP500\n01/02/2024,4742.83\n",
        b"observation_date,SP500\n2024-02-30,4742.83\n",
        b"observation_date,SP500\n2024-01-0",
        read_recording("fred/series_observations_sp500_2014-09.xml"),
    ],
)
def test_another_answer_is_refused(body: bytes) -> None:
    """A web page with HTTP 200, another series, a line that was cut."""
    with pytest.raises(PermanentProviderError):
        parse_bars(body, SPX, LATER)


def test_a_window_is_asked_for_by_its_dates(server: ReplayServer, fake_time: FakeTime) -> None:
    """Ten years are one request; rows outside the window are left out."""
    server.misbehave(answer_with(read_recording(CSV), content_type=PLAIN))
    provider = make_provider(server, fake_time)
    window = between("2024-01-01", "2024-02-01")
    bars = provider.fetch_bars(SPX, Interval.DAY, window, LATER)
    assert len(bars) == 21
    (seen,) = server.requests
    assert seen.path == "/fred/graph/fredgraph.csv"
    assert seen.query == {"id": "SP500", "cosd": "2024-01-01", "coed": "2024-02-01"}


def test_only_days_of_ten_years_are_there() -> None:
    """The plan knows before anybody asks."""
    assert SPX.intervals == (Interval.DAY,)
    terms = FredProvider({}).describe_history(SPX, Interval.DAY)
    assert terms.reaches_back == timedelta(days=3643)
    with pytest.raises(PermanentProviderError, match="only 1d"):
        FredProvider({}).fetch_bars(SPX, Interval.HOUR, between("2024-01-01", "2024-02-01"), LATER)


def test_the_live_price_is_the_last_close(server: ReplayServer, fake_time: FakeTime) -> None:
    """At the time of that close; none where no session has ended."""
    body = b"observation_date,SP500\n2024-01-11,4780.24\n2024-01-12,4783.83\n2024-01-15,\n"
    server.misbehave(answer_with(body, content_type=PLAIN), times=2)
    provider = make_provider(server, fake_time)
    (snapshot,) = provider.fetch_snapshots([SPX], at("2024-01-15T12:00"))
    assert (snapshot.price, snapshot.observed_at) == (4783.83, at("2024-01-12T21:00"))
    assert provider.fetch_snapshots([SPX], at("2024-01-11T12:00")) == []
