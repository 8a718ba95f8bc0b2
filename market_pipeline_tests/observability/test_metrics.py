"""Metrics: declared once, bounded, added up by many at once, documented as they are."""

import random
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

import market_pipeline.api.app  # noqa: F401 - declares all of them
from market_pipeline.observability import metrics
from market_pipeline.observability.metrics import (
    MAX_SERIES,
    Metric,
    Sample,
    collect,
    counter,
    gauge,
    histogram,
)
from market_pipeline.storage.alerts.metrics import add_totals, read_totals


@pytest.fixture(autouse=True)
def declared() -> Iterator[None]:
    """Metrics declared by a test end with it."""
    before = dict(Metric.DECLARED)
    yield
    for name in set(Metric.DECLARED) - set(before):
        metrics._STORE._series.pop(name, None)
    Metric.DECLARED.clear()
    Metric.DECLARED.update(before)


def find(samples: list[Sample], name: str) -> list[Sample]:
    """Return a metric's series."""
    return [sample for sample in samples if sample.name == name]


def test_a_process_counts_sets_and_observes() -> None:
    """The three kinds, from threads at once."""
    seen = counter("test_seen_total", "Seen", ("what",))
    level = gauge("test_level", "Level")
    waits = histogram("test_wait_seconds", "Waits", bounds=(0.1, 1.0))

    def work() -> None:
        for _ in range(1_000):
            seen.inc(what="a")
            waits.observe(0.5)
        level.set(3)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (one,), (two,), (three,) = (
        find(collect(), name) for name in ("test_seen_total", "test_level", "test_wait_seconds")
    )
    assert (one.value, two.value) == (4_000, 3)
    assert (three.value, three.count, three.buckets) == (2_000, 4_000, (0, 4_000))


def test_a_thousand_series_and_the_rest_together(engine: Engine) -> None:
    """Nobody fills the memory or a table with names."""
    names = counter("test_names_total", "Names", ("name",))
    random.seed(7)
    made = [f"M{random.random()}" for _ in range(3_000)]  # noqa: S311 - no secret
    for name in made:
        names.inc(name=name)
    with engine.begin() as connection:
        add_totals(connection, [names.sample(1, name=name) for name in made[:2_000]])
        add_totals(connection, [names.sample(1, name=name) for name in made[2_000:]])
        stored = find(read_totals(connection), "test_names_total")
    for found in (find(collect(), "test_names_total"), stored):
        assert len(found) == MAX_SERIES + 1
        assert sum(sample.value for sample in found) == 3_000


def test_labels_and_names_are_those_declared() -> None:
    """A typing error is told, not counted."""
    one = counter("test_one_total", "One", ("a",))
    with pytest.raises(ValueError, match="expected the labels"):
        one.inc(b="x")
    with pytest.raises(ValueError, match="ends in _total"):
        counter("test_two", "Two")
    with pytest.raises(ValueError, match="declared already"):
        counter("test_one_total", "Another")
    assert counter("test_one_total", "One", ("a",)) is not None


def test_totals_add_up_whoever_adds_in_whatever_order(engine: Engine) -> None:
    """Eight writers, series in any order: nothing is lost, nobody is locked up."""
    seen = counter("test_sum_total", "Sum", ("n",))
    waits = histogram("test_sum_seconds", "Waits", bounds=(1.0, 2.0))

    def work(seed: int) -> None:
        order = random.Random(seed)  # noqa: S311 - no secret
        for _ in range(20):
            samples = [seen.sample(1, n=str(n)) for n in range(5)]
            samples.append(waits.observe_all([0.5, 1.5, 2.5]))
            order.shuffle(samples)
            with engine.begin() as connection:
                add_totals(connection, samples)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with engine.connect() as connection:
        totals = read_totals(connection)
    assert [one.value for one in find(totals, "test_sum_total")] == [160] * 5
    (one,) = find(totals, "test_sum_seconds")
    assert (one.value, one.count, one.buckets) == (720.0, 480, (160, 320))


def test_a_transaction_that_is_rolled_back_counts_nothing(engine: Engine) -> None:
    """Totals are as true as the rows beside them."""
    seen = counter("test_rolled_total", "Rolled")
    with engine.connect() as connection:
        add_totals(connection, [seen.sample(1)])
        connection.rollback()
        assert find(read_totals(connection), "test_rolled_total") == []


def test_the_docs_list_every_metric_as_it_is(request: pytest.FixtureRequest) -> None:
    """One table: name, type, unit, labels, meaning; none missing, none too many."""
    page = (request.config.rootpath / "docs" / "metrics.md").read_text()
    told = sorted(line for line in page.splitlines() if line.startswith("| `"))
    assert told == sorted(describe(metric) for metric in Metric.DECLARED.values())


def describe(metric: Metric) -> str:
    """Return a metric's row of the docs."""
    labels = ", ".join(f"`{name}`" for name in metric.labels)
    return (
        f"| `{metric.name}` | {metric.kind} | {metric.unit} | {labels} | {metric.meaning} |"
    ).replace("|  |", "| |")
