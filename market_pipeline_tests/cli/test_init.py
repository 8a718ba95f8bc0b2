"""``market-pipeline init``: DAGSTER_HOME merged into ``.env``, and nothing else touched."""

from pathlib import Path

import pytest

from market_pipeline_tests.commands import ROOT, run_command

OTHERS = "# a comment\nDATABASE_URL='postgres://me@host/db'\n\nexport LOG_LEVEL=debug # why\n"


def init(folder: Path) -> str:
    """Run it, and return the file's text."""
    done = run_command("market-pipeline", "init", environment={}, folder=folder)
    assert done.returncode == 0, done.stderr
    return (folder / ".env").read_text()


def test_a_missing_file_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    """Secrets will be written there; the path is absolute, for it is read anywhere."""
    assert init(tmp_path) == f"DAGSTER_HOME='{ROOT}'\n"
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600


def test_other_lines_and_the_mode_stay_and_twice_is_once(tmp_path: Path) -> None:
    """Comments, quotes and exports survive."""
    file = tmp_path / ".env"
    file.write_text(OTHERS)
    file.chmod(0o640)
    first = init(tmp_path)
    assert first == f"{OTHERS}DAGSTER_HOME='{ROOT}'\n"
    assert init(tmp_path) == first
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("line", ["DAGSTER_HOME=\n", "DAGSTER_HOME=relative/path\n"])
def test_another_home_is_replaced_in_its_place(tmp_path: Path, line: str) -> None:
    """Dagster refuses a relative one."""
    (tmp_path / ".env").write_text(f"{line}{OTHERS}")
    assert init(tmp_path) == f"DAGSTER_HOME='{ROOT}'\n{OTHERS}"


def test_a_last_line_without_an_end_gets_one(tmp_path: Path) -> None:
    """Two settings never run together."""
    (tmp_path / ".env").write_text("MOCK_SEED=8")
    assert init(tmp_path) == f"MOCK_SEED=8\nDAGSTER_HOME='{ROOT}'\n"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """A file shared between checkouts is changed where it lies."""
    shared = tmp_path / "shared.env"
    shared.write_text(OTHERS)
    (tmp_path / ".env").symlink_to(shared)
    init(tmp_path)
    assert (tmp_path / ".env").is_symlink()
    assert shared.read_text() == f"{OTHERS}DAGSTER_HOME='{ROOT}'\n"
