"""Checks of markets, prices, statistics, comparisons and cache: each passes and each warns."""

from collections.abc import Iterator, Mapping

import dagster as dg
import pytest
from sqlalchemy import Engine, TextClause, text

from market_pipeline.definitions import build_definitions
from market_pipeline.orchestration.output_checks import check_outputs
from market_pipeline.storage.statistics import masked
from market_pipeline_tests.cache.valkey import Valkey
from market_pipeline_tests.orchestration.conftest import Materialise
from market_pipeline_tests.orchestration.test_checks import (
    add_hole,
    list_violations,
    read_numbers,
)
from market_pipeline_tests.ports import choose_port

pytestmark = pytest.mark.usefixtures("without_pictures")

MORNING = "2024-03-15T10:00Z"
SYMBOLS = ["BTC-USD", "ETH-USD", "SPX"]
RUN = {"symbols": SYMBOLS, "window_end": MORNING, "lookback_days": 30}
Evaluations = Mapping[str, dg.AssetCheckEvaluation]


@pytest.fixture
def valkey(monkeypatch: pytest.MonkeyPatch) -> Iterator[Valkey]:
    """A server for one test, which runs use."""
    server = Valkey().start()
    monkeypatch.setenv("REDIS_URL", server.url)
    yield server
    server.close()


def evaluate(result: dg.ExecuteInProcessResult) -> Evaluations:
    """Return what each check said; a check that warns fails no run."""
    assert result.success
    return {one.check_name: one for one in result.get_asset_check_evaluations()}


def test_every_stored_asset_has_a_check_that_says_what_it_looks_at() -> None:
    """None of them is green whatever happens."""
    graph = build_definitions().resolve_asset_graph()
    keys = graph.asset_check_keys
    assert {key.asset_key for key in keys} == graph.materializable_asset_keys
    assert all(graph.get(key).description for key in keys)


def test_a_good_run_passes_them_with_its_numbers(materialise: Materialise) -> None:
    """What was looked at is counted: rows of four horizons, and three pairs of three markets."""
    found = evaluate(materialise(**RUN))
    assert read_numbers(found["symbols_served"]) == {"run_symbols": 3, "unserved": 0}
    assert read_numbers(found["prices_complete"]) == {"run_markets": 3, "missing": 0}
    assert read_numbers(found["statistics_unmasked"]) == {"rows": 12, "masked": 0}
    assert read_numbers(found["comparisons_unmasked"]) == {"rows": 12, "masked": 0}
    assert read_numbers(found["cache_current"]) == {"entries": 0, "behind": 0, "oldest_seconds": 0}
    assert all(one.passed for one in found.values())


def test_a_symbol_without_a_provider_is_named(materialise: Materialise) -> None:
    """On the asset that looked for it."""
    found = evaluate(materialise("markets", **{**RUN, "symbols": ["BTC-USD", "X:FOO"]}))
    (line,) = list_violations(found["symbols_served"])
    assert line["market"] == "X:FOO"
    assert read_numbers(found["symbols_served"]) == {"run_symbols": 2, "unserved": 1}


def test_a_market_without_a_price_is_named(
    materialise: Materialise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other prices are stored."""
    monkeypatch.setenv("MOCK_FAULTS", "ETH-USD:empty_page")
    found = evaluate(materialise("market_snapshots", **RUN))
    (line,) = list_violations(found["prices_complete"])
    assert (line["market"], line["provider"]) == ("ETH-USD", "mock")
    assert line["reason"]
    assert read_numbers(found["prices_complete"]) == {"run_markets": 3, "missing": 1}


@pytest.mark.parametrize("asset", ["market_roi_statistics", "market_comparisons"])
def test_masked_rows_are_counted_whatever_a_run_computes(
    materialise: Materialise, engine: Engine, asset: str
) -> None:
    """A hole masks its market's rows and pairs; later runs write nothing, or are of others."""
    evaluate(materialise(**RUN))
    add_hole(engine, "ETH-USD", "fetch_failed", 9, "2024-03-01T00:00Z", "2024-03-02T00:00Z")
    name = {"market_roi_statistics": "statistics", "market_comparisons": "comparisons"}[asset]
    for run_over in (SYMBOLS, SYMBOLS, ["BTC-USD", "SPX"]):
        found = evaluate(materialise(asset, **{**RUN, "symbols": run_over}))[f"{name}_unmasked"]
        lines = list_violations(found)
        assert not found.passed
        assert read_numbers(found)["masked"] == len(lines) > 0
        assert all("ETH-USD" in line["of"] for line in lines)
        assert {line["reason"] for line in lines} == {"unexplained_hole"}


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (masked._STATISTICS, "market_roi_statistic_pkey"),
        (masked._COMPARISONS, "market_comparison_pkey"),
    ],
)
def test_masked_rows_are_looked_up_by_their_key(
    engine: Engine, query: TextClause, index: str
) -> None:
    """However long the history of a series is."""
    known = {"firsts": [1], "seconds": [2], "horizons": ["30d"], "reasons": [], "interval": "1d"}
    asked = {name: known.get(name, ".*") for name in query._bindparams}
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        explained = text(f"EXPLAIN {query.text}")
        plan = "\n".join(connection.execute(explained, asked).scalars())
    assert index in plan, plan
    assert f"Seq Scan on {index.removesuffix('_pkey')}" not in plan


def test_an_entry_that_was_left_behind_is_named(
    materialise: Materialise, engine: Engine, valkey: Valkey, instance: dg.DagsterInstance
) -> None:
    """By a change that no refresh followed, or because Redis lost it; the check runs alone, too."""
    found = evaluate(materialise(**RUN))["cache_current"]
    assert found.passed
    assert read_numbers(found)["entries"] == 3
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE market_data.market_stamp SET version = version + 1 WHERE scope = 'mock:SPX'"
            )
        )
    valkey.client.delete("market:mock:ETH-USD:latest")
    again = evaluate(check_alone(instance))["cache_current"]
    named = [line["market"] for line in list_violations(again)]
    assert named == ["mock:ETH-USD", "mock:SPX"]


def check_alone(instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    """Run the checks without the assets, as the UI can."""
    selection = dg.AssetSelection.checks(check_outputs)
    alone = dg.Definitions(jobs=[dg.define_asset_job("checks", selection=selection)])
    job = dg.Definitions.merge(build_definitions(), alone).resolve_job_def("checks")
    config = {"resources": {"request": {"config": RUN}}}
    return job.execute_in_process(config, instance=instance, raise_on_error=False)


def test_on_an_empty_database_there_is_nothing_to_object_to(
    engine: Engine, database_url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is stored, so nothing is masked."""
    assert engine
    monkeypatch.setenv("DATABASE_URL", database_url)
    found = evaluate(check_alone(instance))
    assert read_numbers(found["comparisons_unmasked"]) == {"rows": 0, "masked": 0}
    assert all(one.passed for one in found.values())


def test_trouble_with_redis_warns(
    materialise: Materialise, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Today's readers go to the database, and somebody should know."""
    assert valkey
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{choose_port()}")
    found = evaluate(materialise("latest_market_cache", **RUN))["cache_current"]
    assert list_violations(found) == [{"market": "all", "trouble": "connection"}]
