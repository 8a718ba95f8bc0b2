"""The file provider: whatever people call their columns, and never a guess."""

from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_pipeline.domain.errors import PermanentProviderError, ProviderError, SettingError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Window, build_empty_bar_frame
from market_pipeline.providers.file import FileProvider, parse_column_mapping
from market_pipeline_tests.replay import RECORDINGS

EVER = Window(datetime(1900, 1, 1, tzinfo=UTC), datetime(2090, 1, 1, tzinfo=UTC))
NOW = datetime(2026, 6, 1, tzinfo=UTC)
HEADER = "date,open,high,low,close,volume\n"
ROWS = "2024-01-02,1,4,0.5,2,10\n2024-01-03,2,5,1,3,20\n2024-01-04,3,6,2,4,30\n"


def fetch(
    path: Path, symbol: str = "BTC-USD", columns: str = "", now: datetime = NOW
) -> pd.DataFrame:
    """Return all bars of a symbol's finest interval."""
    provider = FileProvider({"FILE_PROVIDER_PATH": str(path), "FILE_PROVIDER_COLUMNS": columns})
    market = provider.find_market(symbol)
    assert market is not None
    return provider.fetch_bars(market, market.intervals[0], EVER, now)


def write(folder: Path, text: str, name: str = "BTC-USD.csv") -> Path:
    """Write a file, and return its path."""
    path = folder / name
    path.write_text(text)
    return path


def test_17_years_of_recorded_bitcoin_are_read() -> None:
    """5,905 rows with epoch and date columns, from nothing to a bar frame."""
    bars = fetch(RECORDINGS / "series" / "BTC-USD.csv")
    assert len(bars) == 5905
    first = bars.iloc[0]
    assert (first["open_time"], first["close"]) == (
        pd.Timestamp("2009-10-05", tz="UTC"),
        0.00076392,
    )
    assert (bars["volume_kind"].iloc[0], bars["source_kind"].iloc[0]) == ("base", "traded")


def test_recorded_american_dates_are_read_and_adjusted_closes_ignored() -> None:
    """5,031 rows dated m/d/yyyy; each ends at its session's close in New York."""
    bars = fetch(RECORDINGS / "series", "SPX")
    assert len(bars) == 5031
    assert bars["open_time"].iloc[0] == pd.Timestamp("1999-01-04", tz="UTC")
    assert bars["close_time"].iloc[0] == pd.Timestamp("1999-01-04T21:00", tz="UTC")
    assert bars["close"].iloc[0] == 1228.099976


def test_a_folder_is_a_catalogue_of_its_files_names(tmp_path: Path) -> None:
    """Names are symbols, an interval at the end aside; other files are no markets."""
    for name in ("btc-usd_1d.csv", "BTC-USD_1h.csv", "SPX.CSV", "notes.txt", "no good name.csv"):
        write(tmp_path, HEADER + ROWS, name)
    provider = FileProvider({"FILE_PROVIDER_PATH": str(tmp_path)})
    assert set(provider.list_symbols()) == {"BTC-USD", "SPX"}
    assert provider.find_market("ETH-USD") is None
    market = provider.find_market("BTC-USD")
    assert market is not None
    assert market.intervals == (Interval.HOUR, Interval.DAY)
    assert len(provider.fetch_bars(market, Interval.DAY, EVER, NOW)) == 3


def test_one_file_may_hold_many_symbols(tmp_path: Path) -> None:
    """A symbol column splits the rows; spelling in lower case is no other market."""
    text = "symbol,date,close\nbtc-usd,2024-01-02,1\nETH-USD,2024-01-02,5\nBTC-USD,2024-01-03,2\n"
    path = write(tmp_path, text, "all.csv")
    assert fetch(path)["close"].tolist() == [1.0, 2.0]
    assert fetch(path, "ETH-USD")["close"].tolist() == [5.0]


@pytest.mark.parametrize(
    ("header", "first", "second"),
    [
        ("Date", "2024-01-02", "2024-01-03"),
        ("TIME", "2024-01-02T00:00:00Z", "2024-01-03T00:00:00Z"),
        ("ts", "1704153600", "1704240000"),
        ("Unix Timestamp", "1704153600000", "1704240000000"),
        ("open_time", "1704153600000000", "1704240000000000"),
        ("timestamp", "1704153600000000000", "1704240000000000000"),
        ("date", "20240102", "20240103"),
        ("date", "2024-01-02 00:00:00+02:00", "2024-01-03 00:00:00+02:00"),
        ("start_epoch_s", "1704153600", "1704240000"),
    ],
)
def test_d10_times_are_understood_in_their_own_unit(
    tmp_path: Path, header: str, first: str, second: str
) -> None:
    """Epochs by their size, ISO with or without a zone: a daily row belongs to its local date."""
    bars = fetch(write(tmp_path, f"{header},Close\n{first},1\n{second},2\n"))
    assert bars["open_time"].dt.strftime("%Y-%m-%d %H:%M").tolist() == [
        "2024-01-02 00:00",
        "2024-01-03 00:00",
    ]


@pytest.mark.parametrize(
    ("dates", "expected"),
    [
        (("1/31/2024", "2/1/2024"), ["2024-01-31", "2024-02-01"]),
        (("31/1/2024", "1/2/2024"), ["2024-01-31", "2024-02-01"]),
        (("31.01.2024", "01.02.2024"), ["2024-01-31", "2024-02-01"]),
    ],
)
def test_day_and_month_are_told_apart_by_the_whole_column(
    tmp_path: Path, dates: tuple[str, str], expected: list[str]
) -> None:
    """One value above 12 decides for all rows."""
    bars = fetch(write(tmp_path, f"date,close\n{dates[0]},1\n{dates[1]},2\n"))
    assert bars["open_time"].dt.strftime("%Y-%m-%d").tolist() == expected


@pytest.mark.parametrize("dates", [("1/2/2024", "2/2/2024"), ("31/1/2024", "1/31/2024")])
def test_dates_that_do_not_tell_day_from_month_are_refused(
    tmp_path: Path, dates: tuple[str, str]
) -> None:
    """Nothing is guessed, and nothing decided row by row."""
    path = write(tmp_path, f"date,close\n{dates[0]},1\n{dates[1]},2\n")
    with pytest.raises(PermanentProviderError, match=r"do not tell day from month.*yyyy-mm-dd"):
        fetch(path)


def test_a_file_of_closes_becomes_bars_from_points(tmp_path: Path) -> None:
    """Open, high and low equal the close, and the source kind says so."""
    bars = fetch(write(tmp_path, "date,price\n2024-01-02,5\n2024-01-03,6\n"))
    assert (bars[["open", "high", "low"]].eq(bars["close"], axis=0)).all().all()
    assert bars["source_kind"].unique().tolist() == ["points"]
    assert bars["volume_kind"].unique().tolist() == ["none"]


def test_hours_are_detected_by_the_distance_of_rows(tmp_path: Path) -> None:
    """Rows an hour apart are hourly bars; a session's last hour ends at the close."""
    rows = "".join(f"2024-01-12T{hour}:30:00Z,{hour}\n" for hour in range(14, 21))
    bars = fetch(write(tmp_path, f"time,close\n{rows}", "SPX.csv"), "SPX")
    assert bars["interval"].unique().tolist() == ["1h"]
    assert bars["close_time"].iloc[-1] == pd.Timestamp("2024-01-12T21:00", tz="UTC")


def test_columns_can_be_mapped(tmp_path: Path) -> None:
    """FILE_PROVIDER_COLUMNS names what the spellings miss."""
    path = write(tmp_path, "wann,schluss\n2024-01-02,5\n2024-01-03,6\n")
    with pytest.raises(PermanentProviderError, match=r"no column for open_time, close.*'wann'"):
        fetch(path)
    assert fetch(path, columns="open_time=wann, close=schluss")["close"].tolist() == [5.0, 6.0]


def test_a_file_without_a_header_says_how_to_map_it(tmp_path: Path) -> None:
    """Refused with the way out, which then works."""
    path = write(tmp_path, "1704153600,10,1,4,0.5,2\n1704240000,20,2,5,1,3\n")
    with pytest.raises(PermanentProviderError, match=r"no header line.*open_time=0"):
        fetch(path)
    bars = fetch(path, columns="open_time=0,volume=1,open=2,high=3,low=4,close=5")
    assert (bars["volume"].tolist(), bars["close"].tolist()) == ([10.0, 20.0], [2.0, 3.0])


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_read_off_the_header(tmp_path: Path, separator: str) -> None:
    """A byte order mark and Windows line ends are no obstacle."""
    text = "\ufeff" + (HEADER + ROWS).replace(",", separator).replace("\n", "\r\n")
    assert fetch(write(tmp_path, text))["close"].tolist() == [2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("date,close\n", "has no rows"),
        ("date,open,close\n2024-01-02,1,2\n", "no column for high, low"),
        ("date,close\n2024-01-02,1\n2024-01-03,abc\n", "column 'close' has 'abc' in row 2"),
        ('date,close\n2024-01-02,"1,5"\n', "column 'close' has '1,5' in row 1"),
        ("date,close\n2024-01-02,1,5\n", "more cells than its first line"),
        ("date,close\n2024-01-02,1\n2024-01-03,1,5\n", "Expected 2 fields in line 3, saw 3"),
        ("date,close\nyesterday,1\n", "times cannot be read"),
        ("date,close\n,1\n2024-01-03,2\n", "missing or implausible"),
        ("date,close\n2024-02-30,1\n", "times cannot be read"),
        ("ts,close\n5,1\n9e18,2\n", "missing or implausible"),
        ("date,close\n2024-01-02,1\n2024-01-09,1\n2024-01-16,1\n", "7 days"),
        ("date,close\n2024-01-02T00:00,1\n2024-01-02T00:05,2\n", "0 days 00:05:00 apart"),
        ("<html><body>503</body></html>\n<p>\n", "has no header line"),
        ("date,close\ntrue,1\nfalse,2\n", "true and false"),
        ("date,close\n2024-01-02,true\n", "holds no numbers"),
    ],
)
def test_d8_a_file_that_cannot_be_understood_says_why(
    tmp_path: Path, text: str, problem: str
) -> None:
    """The message names the file, and the column where it is one."""
    with pytest.raises(PermanentProviderError, match=problem) as failure:
        fetch(write(tmp_path, text))
    assert "BTC-USD.csv" in str(failure.value)


def test_missing_marks_are_no_prices(tmp_path: Path) -> None:
    """FRED writes a dot where there is no value; such rows are left out."""
    bars = fetch(write(tmp_path, "date,close\n2024-01-01,.\n2024-01-02,5\n2024-01-03,\n"))
    assert bars["close"].tolist() == [5.0]


def test_e8_impossible_prices_pass_for_others_to_validate(tmp_path: Path) -> None:
    """The provider hands on what the file says; validating has one place."""
    bars = fetch(write(tmp_path, "date,close\n2024-01-02,-1\n2024-01-03,inf\n2024-01-04,0\n"))
    assert bars["close"].tolist() == [-1.0, float("inf"), 0.0]


def test_e2_rows_come_out_ordered_and_e1_repeated_ones_stay(tmp_path: Path) -> None:
    """Order on disk means nothing; two rows of one time are both handed on, in file order."""
    text = "date,close\n2024-01-03,3\n2024-01-02,1\n2024-01-02,2\n2024-01-04,4\n"
    assert fetch(write(tmp_path, text))["close"].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_e4_bars_are_final_once_they_have_closed(tmp_path: Path) -> None:
    """The bar of the running day is provisional, later ones are not there yet."""
    now = datetime(2024, 1, 3, 12, tzinfo=UTC)
    bars = fetch(write(tmp_path, HEADER + ROWS), now=now)
    assert bars["is_final"].tolist() == [True, False]


def test_a_snapshot_is_the_last_close(tmp_path: Path) -> None:
    """Observed when that bar closed; a market without one has none."""
    provider = FileProvider({"FILE_PROVIDER_PATH": str(write(tmp_path, HEADER + ROWS))})
    market = provider.find_market("BTC-USD")
    assert market is not None
    (snapshot,) = provider.fetch_snapshots([market], datetime(2024, 1, 4, 12, tzinfo=UTC))
    assert (snapshot.price, snapshot.observed_at) == (3.0, datetime(2024, 1, 4, tzinfo=UTC))
    assert provider.fetch_snapshots([market], datetime(2024, 1, 1, tzinfo=UTC)) == []


def test_parquet_says_the_same_as_csv(tmp_path: Path) -> None:
    """With times as a column or as the index."""
    table = pd.read_csv(write(tmp_path, HEADER + ROWS))
    table["date"] = pd.to_datetime(table["date"])
    expected = fetch(tmp_path / "BTC-USD.csv")
    for name, variant in (("A-USD", table), ("B-USD", table.set_index("date"))):
        variant.to_parquet(tmp_path / f"{name}.parquet")
        pd.testing.assert_frame_equal(fetch(tmp_path / f"{name}.parquet", name), expected)


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """A long-running process sees new rows."""
    path = write(tmp_path, HEADER + ROWS)
    provider = FileProvider({"FILE_PROVIDER_PATH": str(path)})
    market = provider.find_market("BTC-USD")
    assert market is not None
    write(tmp_path, HEADER + ROWS + "2024-01-05,4,7,3,5,40\n")
    assert len(provider.fetch_bars(market, Interval.DAY, EVER, NOW)) == 4


def test_two_files_for_one_series_are_refused(tmp_path: Path) -> None:
    """Which of them is right is not ours to say."""
    write(tmp_path, HEADER + ROWS)
    write(tmp_path, HEADER + ROWS, "BTC-USD_1d.csv")
    with pytest.raises(PermanentProviderError, match=r"BTC-USD\.csv, BTC-USD_1d\.csv"):
        fetch(tmp_path)


def test_a_broken_file_shows_when_its_market_is_fetched(tmp_path: Path) -> None:
    """The catalogue and the other markets do not suffer from it."""
    write(tmp_path, "nothing here\n1\n", "SPX.csv")
    write(tmp_path, HEADER + ROWS)
    assert len(fetch(tmp_path)) == 3
    with pytest.raises(PermanentProviderError, match=r"SPX\.csv"):
        fetch(tmp_path, "SPX")


@pytest.mark.parametrize("name", ["missing.csv", "missing"])
def test_a_path_that_is_not_there_is_a_wrong_setting(tmp_path: Path, name: str) -> None:
    """Named with its value, when it is first needed."""
    provider = FileProvider({"FILE_PROVIDER_PATH": str(tmp_path / name)})
    with pytest.raises(SettingError, match=r"FILE_PROVIDER_PATH=.*missing"):
        provider.find_market("BTC-USD")


def test_an_empty_folder_is_a_wrong_setting(tmp_path: Path) -> None:
    """The message shows what a file may be called."""
    with pytest.raises(SettingError, match=r"BTC-USD\.csv"):
        FileProvider({"FILE_PROVIDER_PATH": str(tmp_path)}).find_market("BTC-USD")


def test_without_a_path_nothing_is_served_and_it_says_what_to_set() -> None:
    """No file is touched when constructed or asked."""
    provider = FileProvider({"FILE_PROVIDER_PATH": ""})
    assert provider.explain_missing_settings() is not None
    assert (provider.find_market("BTC-USD"), provider.list_symbols()) == (None, ())


@pytest.mark.parametrize("text", ["close", "close=", "price=last", "=x"])
def test_a_malformed_mapping_is_a_wrong_setting(text: str) -> None:
    """The message lists the columns there are."""
    with pytest.raises(SettingError, match=r"FILE_PROVIDER_COLUMNS.*open_time, open"):
        parse_column_mapping(text)


@settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(data=st.data())
def test_d16_any_bytes_in_a_file_give_bars_or_one_provider_error(
    tmp_path: Path, data: st.DataObject
) -> None:
    """Noise, or a real file with some bytes replaced, under either suffix."""
    content = data.draw(st.one_of(st.binary(max_size=300), mutate((HEADER + ROWS).encode())))
    suffix = data.draw(st.sampled_from([".csv", ".parquet"]))
    path = tmp_path / f"BTC-USD{suffix}"
    path.write_bytes(content)
    provider = FileProvider({"FILE_PROVIDER_PATH": str(path)})
    market = provider.find_market(next(iter(provider.list_symbols()), "BTC-USD"))
    assert market is not None
    try:
        bars = provider.fetch_bars(market, market.intervals[0], EVER, NOW)
    except ProviderError:
        return
    assert bars.dtypes.equals(build_empty_bar_frame().dtypes)


def mutate(body: bytes) -> st.SearchStrategy[bytes]:
    """Return variants of a body with a few pieces replaced."""
    piece = st.tuples(
        st.integers(0, len(body)), st.integers(0, 12), st.binary(max_size=6) | st.sampled_from(ODD)
    )

    def apply(pieces: list[tuple[int, int, bytes]]) -> bytes:
        changed = body
        for start, length, new in pieces:
            changed = changed[:start] + new + changed[start + length :]
        return changed

    return st.lists(piece, min_size=1, max_size=4).map(apply)


ODD = [
    b"9" * 30,
    b"-1",
    b"1e400",
    b"NaN",
    b'"',
    b"\n",
    b",",
    b"9999-12-31",
    b"0001-01-01",
    b"+99:99",
]
