"""markets.csv: what the files' markets are; and what is assumed where nobody said it."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market_pipeline.domain.errors import PermanentProviderError, SettingError
from market_pipeline.domain.intervals import Interval
from market_pipeline.domain.records import Market, Window
from market_pipeline.providers.file import FileProvider
from market_pipeline.providers.file_markets import COLUMNS, read_market_facts

EVER = Window(datetime(1900, 1, 1, tzinfo=UTC), datetime(2090, 1, 1, tzinfo=UTC))
NOW = datetime(2026, 6, 1, tzinfo=UTC)
WEEKDAYS = pd.bdate_range("2024-01-02", "2024-03-28")
ALL_DAYS = pd.date_range("2024-01-02", "2024-03-28")


class Folder:
    """A folder of files, as FILE_PROVIDER_PATH."""

    def __init__(self, path: Path) -> None:
        self.path, self.environ = path, {"FILE_PROVIDER_PATH": str(path)}

    def write(self, symbol: str, dates: pd.DatetimeIndex = WEEKDAYS, name: str = "") -> None:
        """Write closes of some dates."""
        rows = "".join(f"{date:%Y-%m-%d},{4 + at}\n" for at, date in enumerate(dates))
        (self.path / f"{name or symbol}.csv").write_text("date,close\n" + rows)

    def tell(self, text: str, name: str = "markets.csv") -> None:
        """Write markets.csv."""
        (self.path / name).write_text(text)

    def find(self, symbol: str) -> Market:
        """Return a symbol's market as a new provider sees it."""
        market = FileProvider(self.environ).find_market(symbol)
        assert market is not None
        return market

    def fetch(self, market: Market) -> pd.DataFrame:
        """Return all bars of the market's finest interval."""
        return FileProvider(self.environ).fetch_bars(market, market.intervals[0], EVER, NOW)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder without a file yet."""
    return Folder(tmp_path)


def test_a_table_beside_the_files_says_what_they_hold(folder: Folder) -> None:
    """Every column, in any order; what is told is not assumed."""
    folder.write("SAP")
    folder.tell(
        "name,symbol,venue,calendar,quote,timezone,price_basis\n"
        '"SAP, the share",sap,XETRA,XETR,eur,Europe/Berlin,split_adjusted\n'
    )
    market = folder.find("SAP")
    assert (market.name, market.venue) == ("SAP, the share", "XETRA")
    assert (market.calendar, market.quote) == ("XETR", "EUR")
    assert (market.base, market.price_basis, market.assumed) == ("SAP", "split_adjusted", None)
    bars = folder.fetch(market)
    assert bars["close_time"].iloc[0] == pd.Timestamp("2024-01-02T16:30Z")


def test_the_table_is_no_market_itself(folder: Folder) -> None:
    """Also when a setting names another one, which must then be there."""
    folder.write("SAP")
    folder.tell("symbol,quote\nSAP,EUR\n")
    assert FileProvider(folder.environ).list_symbols() == ("SAP",)
    folder.tell("symbol,quote\nSAP,CHF\n", "facts.csv")
    folder.environ["FILE_PROVIDER_MARKETS"] = str(folder.path / "facts.csv")
    assert folder.find("SAP").quote == "CHF"
    assert set(FileProvider(folder.environ).list_symbols()) == {"SAP"}
    (folder.path / "facts.csv").unlink()
    with pytest.raises(SettingError, match=r"FILE_PROVIDER_MARKETS='.*facts\.csv' cannot be read"):
        folder.find("SAP")


def test_one_file_of_many_symbols_has_a_table_too(folder: Folder) -> None:
    """It lies beside the file."""
    rows = "symbol,date,close\nSAP,2024-01-02,1\nSAP,2024-01-03,2\n"
    (folder.path / "all.csv").write_text(rows)
    folder.environ["FILE_PROVIDER_PATH"] = str(folder.path / "all.csv")
    folder.tell("symbol;calendar;quote\nSAP;XETR;EUR\n")
    assert (folder.find("SAP").calendar, folder.find("SAP").quote) == ("XETR", "EUR")
    folder.tell(rows)
    folder.environ["FILE_PROVIDER_PATH"] = str(folder.path / "markets.csv")
    assert folder.find("SAP").calendar == "XNYS"  # a file of prices may have that name


@pytest.mark.parametrize(
    ("symbol", "base", "quote", "calendar", "assumed"),
    [
        ("BTC-USD", "BTC", "USD", "24/7", None),
        ("SPX", "SPX", "USD", "XNYS", None),
        ("F", "F", "USD", "XNYS", "calendar XNYS and quote USD assumed"),
        ("DAX", "DAX", "EUR", "XETR", None),
        ("SAP.DE", "SAP.DE", "EUR", "XETR", "calendar XETR and quote EUR assumed"),
        ("7203.T", "7203.T", "JPY", "XTKS", "calendar XTKS and quote JPY assumed"),
        ("EURUSD", "EUR", "USD", "24/5", "calendar 24/5 and quote USD assumed"),
        ("EUR-JPY", "EUR", "JPY", "24/5", "calendar 24/5 and quote JPY assumed"),
        ("AAPL", "AAPL", "USD", "XNYS", "calendar XNYS and quote USD assumed"),
    ],
)
def test_what_is_not_told_is_read_off_the_symbol_and_said(
    folder: Folder, symbol: str, base: str, quote: str, calendar: str, assumed: str | None
) -> None:
    """Pairs and indices speak for themselves; a suffix, two currencies or a ticker do not."""
    folder.write(symbol)
    market = folder.find(symbol)
    assert (market.base, market.quote, market.calendar) == (base, quote, calendar)
    said = assumed and f"{assumed}: markets.csv does not name {symbol}"
    assert market.assumed == said
    folder.tell(f"symbol,calendar\n{symbol},XLON\n")
    half = folder.find(symbol)
    assert (half.calendar, half.quote) == ("XLON", quote)
    assert half.assumed == (
        assumed and f"quote {quote} assumed: markets.csv does not tell it of {symbol}"
    )


def test_rows_on_most_weekends_are_a_market_that_never_closes(folder: Folder) -> None:
    """A pattern decides; what is told and what the symbol says outright come before it."""
    for symbol in ("COIN", "DAX"):
        folder.write(symbol, ALL_DAYS)
    coin = folder.find("COIN")
    assert coin.calendar == "24/7"
    assert coin.assumed == (
        "calendar 24/7 (rows on 24 of 24 weekend dates) and quote USD assumed: markets.csv does "
        "not name COIN"
    )
    assert folder.find("DAX").calendar == "XETR"
    folder.tell("symbol,calendar,quote\nCOIN,XNYS,USD\n")
    assert folder.find("COIN").calendar == "XNYS"


@given(weekend=st.sets(st.sampled_from(list(ALL_DAYS[ALL_DAYS.day_of_week >= 5])), max_size=24))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_no_few_weekend_rows_are_a_pattern(folder: Folder, weekend: set[pd.Timestamp]) -> None:
    """More than half of the Saturdays and of the Sundays, and four dates at least."""
    folder.write("COIN", WEEKDAYS.union(pd.DatetimeIndex(sorted(weekend))))
    counts = [sum(date.day_of_week == day for date in weekend) for day in (5, 6)]
    is_pattern = len(weekend) >= 4 and all(2 * count > 12 for count in counts)
    assert folder.find("COIN").calendar == ("24/7" if is_pattern else "XNYS")


@pytest.mark.parametrize("symbol", ["SAP.DE", "EURUSD", "AAPL"])
def test_one_weekend_row_changes_nothing(folder: Folder, symbol: str) -> None:
    """Whatever the market: it goes on to be validated by the calendar."""
    folder.write(symbol)
    expected = folder.find(symbol)
    folder.write(symbol, WEEKDAYS.union(pd.DatetimeIndex(["2024-02-10"])))
    found = folder.find(symbol)
    assert (found.calendar, found.assumed) == (expected.calendar, expected.assumed)


def test_a_price_of_a_closed_date_is_no_live_price(folder: Folder) -> None:
    """The last bar of a session is the newest price, whatever rows come after it."""
    folder.write("AAPL", WEEKDAYS[:4].union(pd.DatetimeIndex(["2024-01-06"])))
    market = folder.find("AAPL")
    [price] = FileProvider(folder.environ).fetch_snapshots([market], NOW)
    assert (price.price, price.observed_at) == (7.0, datetime(2024, 1, 5, 21, tzinfo=UTC))


def write_hours(folder: Folder, stamps: list[str], symbol: str = "SAP") -> None:
    """Write hourly closes at some stamps."""
    rows = "".join(f"{stamp},{4 + at}\n" for at, stamp in enumerate(stamps))
    (folder.path / f"{symbol}_1h.csv").write_text("time,close\n" + rows)


def test_stamps_without_a_zone_are_of_the_zone_that_is_told(folder: Folder) -> None:
    """Summer and winter; a stamp that names its zone is not moved."""
    folder.tell("symbol,calendar,quote,timezone\nSAP,XETR,EUR,Europe/Berlin\n")
    write_hours(folder, ["2024-01-12 09:00", "2024-07-12 09:00", "2024-07-12T09:00:00+00:00"])
    bars = folder.fetch(folder.find("SAP"))
    assert bars["open_time"].dt.strftime("%m-%d %H:%M").tolist() == [
        "01-12 08:00", "07-12 07:00", "07-12 09:00",
    ]  # fmt: skip
    folder.tell("symbol,calendar,quote\nSAP,XETR,EUR\n")
    assert folder.fetch(folder.find("SAP"))["open_time"].dt.hour.tolist() == [9, 9, 9]


@pytest.mark.parametrize(
    ("stamps", "dates"),
    [
        (("1704150000", "1704236400"), ["2024-01-02", "2024-01-03"]),  # midnight in Berlin
        (("2024-01-01T23:00:00Z", "2024-01-02T23:00:00Z"), ["2024-01-02", "2024-01-03"]),
        (("2024-01-02", "2024-01-03"), ["2024-01-02", "2024-01-03"]),
        (("20240102", "20240103"), ["2024-01-02", "2024-01-03"]),
    ],
)
def test_a_day_is_the_date_in_the_zone_that_is_told(
    folder: Folder, stamps: tuple[str, str], dates: list[str]
) -> None:
    """A moment has its date there; a date is one already."""
    folder.tell("symbol,calendar,quote,timezone\nSAP,XETR,EUR,Europe/Berlin\n")
    rows = "".join(f"{stamp},1\n" for stamp in stamps)
    (folder.path / "SAP.csv").write_text("ts,close\n" + rows)
    bars = folder.fetch(folder.find("SAP"))
    assert bars["open_time"].dt.strftime("%Y-%m-%d").tolist() == dates


def test_the_hour_that_clocks_repeat_is_read_where_the_file_tells_it(folder: Folder) -> None:
    """Both hours in their order are understood; one of them alone is refused, with the cure."""
    folder.tell("symbol,calendar,quote,timezone\nCOIN,24/7,USD,Europe/Berlin\n")
    hours = [f"2024-10-27 {hour:02}:00" for hour in (0, 1, 2, 2, 3, 4)]
    write_hours(folder, hours, "COIN")
    assert folder.fetch(folder.find("COIN"))["open_time"].dt.hour.tolist() == [22, 23, 0, 1, 2, 3]
    write_hours(folder, [*hours[:3], *hours[4:]], "COIN")
    with pytest.raises(PermanentProviderError, match=r"COIN_1h\.csv.*Europe/Berlin.*\+01:00"):
        folder.fetch(folder.find("COIN"))


ADJUSTED = "date,open,high,low,close,Adj Close\n2024-01-02,8,10,6,8,4\n2024-01-03,8,9,7,8,8\n"


def test_an_adjusted_close_is_a_price_basis_that_can_be_had(folder: Folder) -> None:
    """All four prices are scaled by it where that is told; else the note says that it is there."""
    (folder.path / "AAPL.csv").write_text(ADJUSTED)
    plain = folder.find("AAPL")
    assert plain.price_basis == "unadjusted"
    assert plain.assumed is not None
    assert plain.assumed.endswith(
        "; its column 'Adj Close' is not used: price_basis=adjusted in markets.csv would"
    )
    assert folder.fetch(plain)["close"].tolist() == [8.0, 8.0]
    folder.tell("symbol,calendar,quote,price_basis\nAAPL,XNYS,USD,adjusted\n")
    adjusted = folder.find("AAPL")
    assert (adjusted.price_basis, adjusted.assumed) == ("adjusted", None)
    prices = folder.fetch(adjusted)[["open", "high", "low", "close"]]
    assert prices.to_numpy().tolist() == [[4.0, 5.0, 3.0, 4.0], [8.0, 9.0, 7.0, 8.0]]
    assert folder.fetch(plain)["close"].tolist() == [8.0, 8.0]  # the stored basis decides


def test_prices_that_are_called_adjusted_are_so_without_a_second_close(folder: Folder) -> None:
    """The file may hold nothing else; a missing adjusted close is no price."""
    folder.write("AAPL")
    folder.tell("symbol,calendar,quote,price_basis\nAAPL,XNYS,USD,adjusted\n")
    assert folder.fetch(folder.find("AAPL"))["close"].iloc[0] == 4.0
    (folder.path / "AAPL.csv").write_text(ADJUSTED.replace("8,4\n", "8,\n"))
    assert np.isnan(folder.fetch(folder.find("AAPL"))["close"].iloc[0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("symbol,calendar\nA,XNYS\nSAP,XNOPE\n", r"line 3: calendar 'XNOPE' is unknown.*XNYS"),
        ("symbol,timezone\nSAP,Mars/Base\n", r"line 2: timezone 'Mars/Base' is unknown.*Europe/"),
        ("symbol,timezone\nSAP,Europe\n", r"line 2: timezone 'Europe' is unknown"),
        ("symbol,price_basis\nSAP,real\n", r"line 2: price_basis 'real'.*unadjusted, split_adj"),
        ("symbol,quote\nSAP,E U R\n", r"line 2: quote 'E U R'.*such as EUR"),
        ("symbol,quote\nS A P,EUR\n", r"line 2: symbol 'S A P' is malformed"),
        ("symbol,quote\n,EUR\n", r"line 2: symbol '' is malformed"),
        ("symbol,quote\nSAP,EUR\n\nsap,USD\n", r"line 4: symbol 'SAP' is on line 2 as well.*one"),
        ("symbol,colour\nSAP,red\n", r"line 1: column 'colour' is unknown.*symbol, calendar"),
        ("symbol,quote,quote\nSAP,EUR,EUR\n", r"line 1: column 'quote' appears twice"),
        ("quote\nEUR\n", r"line 1: there is no column 'symbol'.*add it"),
        ("symbol,quote\nSAP,EUR,USD\n", r"line 2: .*3 cells.*2 columns.*quotation marks"),
        ('symbol,quote\n"SAP,EUR\n', r"line \d: .*unexpected end of data"),
        ("", r"line 1: there is no column 'symbol'"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_meant_is_a_wrong_setting(
    folder: Folder, text: str, said: str
) -> None:
    """The message names the file, the line, the value and the cure; no market is served."""
    folder.write("SAP")
    folder.tell(text)
    with pytest.raises(SettingError, match=said) as refused:
        FileProvider(folder.environ).find_market("SAP")
    assert str(folder.path / "markets.csv") in str(refused.value)


def test_a_table_that_is_no_utf_8_says_where(folder: Folder) -> None:
    """Windows' own encoding is no guess of ours."""
    folder.write("SAP")
    (folder.path / "markets.csv").write_bytes("symbol,name\nSAP,München\n".encode("cp1252"))
    with pytest.raises(SettingError, match=r"markets\.csv line 2: byte 0xfc is not UTF-8.*save it"):
        folder.find("SAP")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.lists(
            st.lists(st.sampled_from([*COLUMNS, "", "XNYS", "EUR", "SAP", '"', "a b"]), max_size=4),
            max_size=4,
        ).map(lambda rows: "\n".join(map(",".join, rows)).encode()),
    )
)
def test_any_bytes_are_facts_or_one_clear_refusal(tmp_path: Path, content: bytes) -> None:
    """No other error, and what is read is whole."""
    path = tmp_path / "markets.csv"
    path.write_bytes(content)
    try:
        facts = read_market_facts(path)
    except SettingError as error:
        refused = str(error)
    else:
        assert all(symbol == symbol.upper() for symbol in facts)
        return
    assert f"{path} line " in refused


def test_an_alias_of_a_calendar_is_the_calendar(folder: Folder) -> None:
    """One name in the database for one calendar."""
    folder.write("GE")
    folder.tell("symbol,calendar,quote\nGE,NYSE,USD\n")
    assert folder.find("GE").calendar == "XNYS"
    assert folder.find("GE").intervals == (Interval.DAY,)
