"""Bad input: one line that names what is wrong, before anything is opened, fetched or written."""

from collections.abc import Callable
from uuid import UUID

import pytest
from click.testing import Result
from sqlalchemy import Engine

from market_pipeline_tests.readers.bar_history import History

Invoke = Callable[..., Result]


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--lookback-days", "-4", "a whole number from 1 to 36525"),
        ("--lookback-days", "0", "a whole number from 1 to 36525"),
        ("--lookback-days", "36526", "a whole number from 1 to 36525"),
        ("--lookback-days", "month", "a whole number from 1 to 36525"),
        ("--lookback-days", "", "a whole number from 1 to 36525"),
        ("--symbols", "BTC USD;", "1 to 32 of A-Z 0-9 . _ : / ^ = -"),
        ("--symbols", "BTC-USD,../etc", "1 to 32 of A-Z 0-9 . _ : / ^ = -"),
        ("--symbols", "A" * 33, "1 to 32 of A-Z 0-9 . _ : / ^ = -"),
        ("--symbols", ",", "name at least one symbol"),
        ("--symbols", "", "name at least one symbol"),
        ("--provider", "nobody", "coinbase, coingecko, file, fred, kraken, mock, yahoo"),
        ("--provider", "mock,nobody", "coinbase, coingecko, file, fred, kraken, mock, yahoo"),
        ("--provider", ",", "a provider's name"),
        ("--window-end", "tomorrow", "an ISO 8601 time"),
        ("--window-end", "2999-01-01", "a time between 1970 and now"),
        ("--window-end", "1969-12-31", "a time between 1970 and now"),
        ("--window-end", "0001-01-01T00:00+10:00", "an ISO 8601 time"),
    ],
)
def test_a_bad_option_is_named_with_its_value(
    invoke: Invoke, option: str, value: str, expected: str
) -> None:
    """Exit 1, one line: the option, the value, what is accepted."""
    refused = invoke("ingest", option, value)
    assert refused.exit_code == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith(f"Error: {option} {value!r}: ")
    assert expected in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("INGESTION_CRON_EXPRESSION", "every day", "five cron fields"),
        ("INGESTION_CRON_EXPRESSION", "99 * * * *", "five cron fields"),
        ("INGESTION_LOOKBACK_DAYS", "-1", "a whole number from 1 to 36525"),
        ("INGESTION_MARKETS", ",", "name at least one symbol"),
        ("INGESTION_PROVIDER", "nobody", "coinbase, coingecko, file, fred, kraken, mock, yahoo"),
        ("INGESTION_EXECUTOR", "threads", "one of in_process, multiprocess"),
        ("FETCH_WORKERS", "0", "a whole number from 1 to 64"),
        ("INGESTION_SCHEDULE_ENABLED", "perhaps", "one of true, yes"),
        ("ALERT_MIN_SEVERITY", "fatal", "one of info, warning"),
        (
            "PROVIDER_CALLS_PER_MINUTE",
            "coingeko=5",
            "coinbase, coingecko, file, fred, kraken, mock, yahoo",
        ),
        ("LOG_LEVEL", "loud", "one of debug, info"),
        ("ROI_HORIZONS_DAYS", "0", "a whole number from 1 to 36525"),
        ("RISK_FREE_RATE", "4", "between -0.5 and 1"),
        ("MOCK_SEED", "seven", "a whole number"),
        ("DAGSTER_HOME", "nowhere/at/all", "the absolute path"),
    ],
)
def test_a_bad_variable_is_named_with_its_value(
    invoke: Invoke, name: str, value: str, expected: str
) -> None:
    """Exit 1, one line: the variable, the value, what is accepted."""
    refused = invoke("ingest", **{name: value})
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"Error: {name}={value!r}: ")
    assert expected in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("plan --from soon", "--from 'soon': expected an ISO 8601 time"),
        ("plan --from 2999-01-01", "--from '2999-01-01': expected a time between 1970 and now"),
        ("plan --from 1969-12-31", "--from '1969-12-31': expected a time between 1970 and now"),
        ("plan --to 2024-01-01", "--to 2024-01-01T00:00:00+00:00: say --from as well"),
        ("plan --symbols ,", "--symbols ',': the market list is empty"),
        ("plan --provider nobody", "coinbase, coingecko, file, fred, kraken, mock, yahoo"),
        (
            "plan --from 2024-03-01 --to 2024-01-01",
            "--from 2024-03-01T00:00:00+00:00 is not before",
        ),
        ("backfill --from 2024-01-01 --to 2024-01-01", "--to 2024-01-01T00:00:00+00:00"),
        ("backfill --from 2024-13-01", "--from '2024-13-01': expected an ISO 8601 time"),
        ("backfill --from 2024-01-01 --symbols ../x", "--symbols '../x': symbol '../x' is malf"),
        ("backfill --from 2024-01-01 --provider x;y", "--provider 'x;y': "),
        ("coverage --symbols BTC;USD", "--symbols 'BTC;USD': symbol 'BTC;USD' is malformed"),
        ("diff 3", "versions '3': expected two numbers, such as 12..15"),
        ("diff -1..3", "versions '-1..3': expected two numbers"),
        ("diff 9..3", "versions '9..3': the first is newer than the second: try 3..9"),
        ("diff 1..2 --symbols ,", "--symbols ',': the market list is empty"),
        ("why BTC-USD luck", "statistic 'luck' is unknown: expected one of roi, "),
        ("quarantine list --symbols BTC;USD", "--symbols 'BTC;USD': symbol"),
        ("export --out bars --as-of 2999-01-01", "--as-of '2999-01-01': expected a time between"),
        ("export --out bars --as-of 2024-01-01 --version 1", "--as-of and --version exclude"),
        ("export --out bars --from 2024-03-01 --to 2024-01-01", "--from 2024-03-01T00:00:00+00:00"),
        ("export --out bars --symbols a,b,%", "symbol '%' is malformed"),
        ("runs --limit 0", "--limit"),
        ("markets add ../x", "'../x'"),
        ("runs show 17", "'17': expected an id, or 4 or more characters"),
    ],
)
def test_every_command_names_what_is_wrong(invoke: Invoke, typed: str, expected: str) -> None:
    """One line, before the database is opened, and nothing is made."""
    refused = invoke(*typed.replace(" -1..3", " -- -1..3").split(" "))
    assert refused.exit_code in {1, 2}
    assert refused.stdout == ""
    assert expected in refused.stderr
    assert "DATABASE_URL" not in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize(
    "typed",
    [
        "coverage --symbols BTC-USD,NOPE,mock:NADA",
        "quarantine list --symbols BTC-USD,NOPE,mock:NADA",
        "diff 0..0 --symbols BTC-USD,NOPE,mock:NADA",
        "export --out bars --symbols BTC-USD,NOPE,mock:NADA",
    ],
)
def test_unknown_markets_among_good_ones_are_all_named(
    invoke: Invoke, engine: Engine, database_url: str, typed: str
) -> None:
    """None is left out in silence; what there is is said."""
    History(engine).add_market("BTC-USD")
    refused = invoke(*typed.split(" "), DATABASE_URL=database_url)
    assert refused.exit_code == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith(
        "Error: no stored market is called NOPE, MOCK:NADA: there is BTC-USD (`market-pipeline "
    )


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("diff 0..7", "dataset version 7 does not exist: the newest is 0"),
        ("why BTC-USD sharpe --horizon 31d", "has no statistics over '31d': there is nothing yet"),
        ("export --out bars --version 7", "dataset version 7 does not exist: the newest is 0"),
        ("export --out bars", "there are no such bars: `market-pipeline coverage` shows what is"),
        ("quarantine show 17", "row 17 is not in the quarantine"),
        ("quarantine replay 17", "17"),
        ("quarantine discard 17", "17"),
        (f"runs show {UUID(int=1)}", str(UUID(int=1))),
    ],
)
def test_what_does_not_exist_is_named(
    invoke: Invoke, engine: Engine, database_url: str, typed: str, expected: str
) -> None:
    """With what there is, or where to look."""
    History(engine).add_market("BTC-USD")
    refused = invoke(*typed.split(" "), DATABASE_URL=database_url)
    assert refused.exit_code == 1
    assert expected in refused.stderr
    assert refused.stderr.startswith("Error: ")


def test_a_market_that_nobody_serves_lists_who_was_asked(invoke: Invoke) -> None:
    """Who was asked, and why not."""
    refused = invoke("ingest", "--symbols", "FOO-USD", "--provider", "coingecko,file")
    assert refused.exit_code == 1
    assert "no provider serves FOO-USD" in refused.stderr
    assert "coingecko: not in its catalogue" in refused.stderr
    assert "file: not ready, set FILE_PROVIDER_PATH" in refused.stderr


def test_an_unknown_option_is_a_usage_error(invoke: Invoke) -> None:
    """Exit 2, with where to read on."""
    refused = invoke("ingest", "--bogus")
    assert refused.exit_code == 2
    assert "market-pipeline ingest --help" in refused.stderr.replace("main", "market-pipeline")


@pytest.mark.parametrize("url", ["hunter2", "postgresql://me:p@hunter2@host/db"])
def test_a_database_url_that_is_none_is_not_repeated(invoke: Invoke, url: str) -> None:
    """It may be a password pasted into the wrong line."""
    refused = invoke("ingest", DATABASE_URL=url)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: DATABASE_URL cannot be read as an address")
    assert "hunter2" not in refused.output


@pytest.mark.parametrize(
    "arguments",
    [["ingest"], ["runs"], ["runs", "show"], ["db", "status"], ["db", "upgrade"], ["db", "shell"]],
)
def test_every_command_tells_an_unreachable_database_alike(
    invoke: Invoke, arguments: list[str]
) -> None:
    """One line that names DATABASE_URL; the password in neither spelling."""
    url = "postgresql://me:s%3Acret@127.0.0.1:1/nowhere"
    refused = invoke(*arguments, DATABASE_URL=url)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: DATABASE_URL (postgresql+psycopg2://me:***@127.0.0.1")
    assert refused.stderr.count("\n") == 1
    assert "s%3Acret" not in refused.output
    assert "s:cret" not in refused.output


def test_no_help_needs_a_setting_or_a_server(invoke: Invoke) -> None:
    """Every command explains itself, with an example where there is something to combine."""
    for arguments in ([], ["init"], ["ingest"], ["runs"], ["providers"], ["db"], ["db", "shell"]):
        told = invoke(*arguments, "--help")
        assert told.exit_code == 0
        assert "Usage:" in told.stdout
    assert "Examples:" in invoke("ingest", "--help").stdout
