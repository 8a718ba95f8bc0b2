"""What a finished write is reported by agrees with the table."""

from uuid import uuid4

import pytest
from sqlalchemy import Engine, text

from market_pipeline.storage.runs import evidence
from market_pipeline.storage.tables import market_aggregate

FILL = text(
    """
    INSERT INTO market_data.market_aggregate (market_id, interval, open_time, close_time, open,
        high, low, close, volume_kind, source_kind, is_final, known_at, dataset_version, run_id)
    SELECT :market_id, '1d', day, day + interval '1 day', 1, 1, 1, 1, 'none', 'traded bars',
        :is_final, now(), 1, :run_id
    FROM generate_series(timestamptz '1990-01-01', timestamptz '1990-01-01'
        + make_interval(days => :days - 1), interval '1 day') AS day
    """
)
MARKET = text(
    """
    INSERT INTO market_data.market (provider, provider_market_id, symbol, name, base, quote, venue,
        calendar, intervals, price_basis)
    VALUES ('mock', 'a', 'A-USD', 'A', 'A', 'USD', 'v', '24/7', '{1d}', 'unadjusted')
    RETURNING market_id
    """
)


def fill(engine: Engine, days: int, is_final: bool = True) -> tuple[int, object]:
    """Store one market's daily bars; return its key and the run's."""
    run_id = uuid4()
    with engine.begin() as connection:
        market_id = int(connection.execute(MARKET).scalar_one())
        row = {"market_id": market_id, "days": days, "run_id": run_id, "is_final": is_final}
        connection.execute(FILL, row)
    return market_id, run_id


def test_a_table_is_counted(engine: Engine) -> None:
    """Up to a million rows the count is exact, also before any ANALYZE."""
    with engine.connect() as connection:
        assert evidence.count_rows(connection, market_aggregate).rows == 0
    fill(engine, 1_234)
    with engine.connect() as connection:
        counted = evidence.count_rows(connection, market_aggregate)
    assert counted == evidence.RowCount(1_234, is_exact=True)


@pytest.mark.owner
def test_a_large_table_is_estimated(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit nothing is counted; the estimate is near, and says that it is one."""
    monkeypatch.setattr(evidence, "COUNTED_ROWS", 100)
    fill(engine, 5_000)
    with engine.begin() as connection:
        connection.execute(text("ANALYZE market_data.market_aggregate"))
        estimated = evidence.count_rows(connection, market_aggregate)
    assert not estimated.is_exact
    assert estimated.rows == pytest.approx(5_000, rel=0.05)


def test_the_relation_is_named_in_full(engine: Engine) -> None:
    """Database, schema and table, as another tool would have to name it."""
    with engine.connect() as connection:
        name = evidence.read_relation_name(connection, market_aggregate)
    assert name == f"{engine.url.database}.market_data.market_aggregate"


@pytest.mark.parametrize("is_final", [True, False])
def test_only_final_days_of_the_run_are_news(engine: Engine, is_final: bool) -> None:
    """Provisional days, other runs and other markets do not count."""
    market_id, run_id = fill(engine, 3, is_final)
    with engine.connect() as connection:
        assert evidence.has_new_final_days(connection, [market_id], run_id) is is_final
        assert not evidence.has_new_final_days(connection, [market_id], uuid4())
        assert not evidence.has_new_final_days(connection, [market_id + 1], run_id)
