"""A job that does nothing: as many assets and checks as the product has, same executor."""

import os

import dagster as dg

COUNT_VARIABLES = ("BENCH_ASSETS", "BENCH_CHECKS")
_ASSETS, _CHECKS = (int(os.environ.get(name, "1")) for name in COUNT_VARIABLES)


def _build_asset(number: int) -> dg.AssetsDefinition:
    @dg.asset(name=f"empty_{number}")
    def empty() -> None:
        pass

    return empty


def _build_check(number: int) -> dg.AssetChecksDefinition:
    @dg.asset_check(name=f"check_{number}", asset="empty_0")
    def check() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True)

    return check


defs = dg.Definitions(
    assets=[_build_asset(number) for number in range(_ASSETS)],
    asset_checks=[_build_check(number) for number in range(_CHECKS)],
    jobs=[dg.define_asset_job("empty", selection=dg.AssetSelection.all())],
    executor=dg.in_process_executor,
)
