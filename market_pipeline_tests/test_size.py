"""The product's size: a new feature pays for its room by tidying."""

from market_pipeline_tests.commands import ROOT

# The next hundred above what there was when this was written. Lower it after every tidying. Raise
# it only with the reason in the commit's body. The aim is 28,000.
CEILING = 44_200


def test_the_product_stays_below_its_ceiling() -> None:
    """Lines of Python without the migrations, which only ever grow."""
    files = (ROOT / "market_pipeline").rglob("*.py")
    product = [file for file in files if "migrations" not in file.parts]
    lines = sum(len(file.read_text().splitlines()) for file in product)
    assert lines <= CEILING
