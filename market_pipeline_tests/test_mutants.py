"""The kept mutants: each still applies, and names tests that exist. ``make mutants`` runs them."""

import pytest

from market_pipeline_tests.mutants.__main__ import ROOT, Mutant, read_mutants

MUTANTS = read_mutants()


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.id for mutant in MUTANTS])
def test_a_mutant_applies_and_its_tests_exist(mutant: Mutant) -> None:
    """A mutant that no longer changes anything would never be missed."""
    changed = mutant.change(ROOT)
    if mutant.file.endswith(".py"):
        compile(changed, mutant.file, "exec")
    assert mutant.put in changed
    for path in mutant.tests.split():
        assert (ROOT / "market_pipeline_tests" / path).exists()


def test_each_invariant_rule_and_control_has_one() -> None:
    """Nineteen invariants and the controls of docs/security.md; ids are told once."""
    ids = [mutant.id for mutant in MUTANTS]
    assert len(set(ids)) == len(ids)
    begun = {one.partition("-")[0] for one in ids}
    assert {f"I{number}" for number in range(1, 20)} <= begun
    assert {f"R{number}" for number in range(1, 10)} <= begun
    assert {f"S{number}" for number in range(1, 21)} <= begun
