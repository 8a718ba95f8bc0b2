"""Copies of the package, changed: an older or newer version beside the one under test."""

import shutil
from pathlib import Path

from market_pipeline_tests.commands import ROOT

VERSIONS = Path("market_pipeline/storage/migrations/versions")
_MIGRATION = '''"""Add a column that only this copy knows."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{down_revision}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the change."""
    op.add_column("market", sa.Column("remark", sa.Text()), schema="market_data")


def downgrade() -> None:
    """Take the change back."""
    op.drop_column("market", "remark", schema="market_data")
'''


def copy_package(folder: Path) -> Path:
    """Copy the package into a folder, which goes first on PYTHONPATH to be the one in use."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "market_pipeline", folder / "market_pipeline", ignore=ignored)
    for name in ("dagster.yaml", ".importlinter"):
        shutil.copy(ROOT / name, folder)
    return folder


def add_migration(folder: Path, down_revision: str, revision: str) -> None:
    """Give a copy one migration more."""
    text = _MIGRATION.format(revision=revision, down_revision=down_revision)
    (folder / VERSIONS / f"{revision}_add_a_remark.py").write_text(text)
