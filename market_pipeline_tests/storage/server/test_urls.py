"""Addresses: one spelling for every library, and no password in anything that is shown."""

from urllib.parse import unquote

import pytest

from market_pipeline.domain.errors import SettingError
from market_pipeline.storage.server.urls import (
    build_psql_address,
    hide_password,
    normalise_database_url,
    redact_password,
    set_search_path,
)

REST = "me:s%3Acret%40@db.example:5433/prices?sslmode=require"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_the_three_spellings_are_one(scheme: str) -> None:
    """Providers of databases write it in three ways; the driver is named in the end."""
    assert normalise_database_url(f"{scheme}://{REST}") == (
        "postgresql+psycopg2://me:s%3Acret%40@db.example:5433/prices?sslmode=require"
    )


@pytest.mark.parametrize(
    "text",
    [
        "hunter2",
        "localhost:5432/hunter2",
        "mysql://me:hunter2@host/db",
        "postgresql+asyncpg://me:hunter2@host/db",
        "postgresql://me:hunter2@host:five/db",
        "postgresql://me:p@hunter2@host/db",
        "postgresql://me:p@hunter2/x@host/db",
        "postgresql:/me:hunter2@host/db",
    ],
)
def test_what_is_no_address_is_refused_without_being_repeated(text: str) -> None:
    """The message names the variable and the shape; the text may be a secret and stays out."""
    with pytest.raises(SettingError, match=r"DATABASE_URL.*postgresql://user:password@") as caught:
        normalise_database_url(text)
    assert "hunter2" not in str(caught.value)


def test_a_shown_address_has_no_password() -> None:
    """Neither in its place nor as a parameter."""
    shown = hide_password("postgresql://me:hunter2@host/db?password=hunter3&sslpassword=hunter4")
    assert "hunter" not in shown
    assert shown.startswith("postgresql://me:***@host/db?")


def test_what_a_library_says_is_cleaned_of_both_spellings() -> None:
    """A password is found as it is and percent-encoded."""
    said = "no entry for p@ss/1 (p%40ss%2F1)"
    assert redact_password(said, "postgresql://me:p%40ss%2F1@host/db") == "no entry for *** (***)"
    assert redact_password(said, "postgresql://me@host/db") == said


def test_search_path_joins_other_options() -> None:
    """Options that were in the address stay."""
    url = set_search_path("postgresql://me@host/db?options=-cwork_mem%3D8MB", "dagster")
    assert url == "postgresql://me@host/db?options=-cwork_mem%3D8MB+-csearch_path%3Ddagster"


@pytest.mark.parametrize(
    "text",
    ["postgresql+psycopg2://me:s%3Acret@host:1/db", "postgresql://me@host:1/db?password=s:cret"],
)
def test_psql_gets_its_password_by_variable(text: str) -> None:
    """Everybody on the machine can read a command line."""
    assert build_psql_address(text) == ("postgresql://me@host:1/db", {"PGPASSWORD": "s:cret"})


def test_psql_without_password_gets_no_variable() -> None:
    """The embedded server knows its user by the socket; PGPASSWORD of the caller stays."""
    address = "postgresql+psycopg2://me@/db?host=%2Frun&port=1"
    assert build_psql_address(address) == ("postgresql://me@/db?host=%2Frun&port=1", {})


@pytest.mark.parametrize(
    ("hosts", "translated"),
    [
        ("a:1,b:2", "host=a:1&host=b:2"),
        ("a,b", "host=a:5432&host=b:5432"),
        ("a:1,b", "host=a:1&host=b:5432"),
        ("[::1]:1,b:2", "host=[::1]:1&host=b:2"),
    ],
)
def test_several_hosts_are_translated_as_sqlalchemy_wants_them(hosts: str, translated: str) -> None:
    """Libpq's own spelling is the one in every manual; writes go to the primary of them."""
    told = normalise_database_url(f"postgresql://me:s%3Acret@{hosts}/prices?sslmode=require")
    address, _, query = unquote(told).partition("?")
    assert address == "postgresql+psycopg2://me:s:cret@/prices"
    wanted = {*translated.split("&"), "sslmode=require", "target_session_attrs=read-write"}
    assert set(query.split("&")) == wanted


def test_whom_several_hosts_are_asked_for_can_be_said() -> None:
    """The address wins over the default."""
    told = normalise_database_url("postgresql://me@a,b/prices?target_session_attrs=any")
    assert "target_session_attrs=any" in told
    assert "read-write" not in told


def test_a_wrong_port_of_several_is_refused_without_being_repeated() -> None:
    """As with one host."""
    with pytest.raises(SettingError, match="cannot be read") as caught:
        normalise_database_url("postgresql://me:hunter2@a:five,b:2/prices")
    assert "hunter2" not in str(caught.value)


def test_psql_gets_several_hosts_in_its_own_spelling() -> None:
    """It does not know SQLAlchemy's."""
    url = normalise_database_url("postgresql://me:s%3Acret@a:1,b:2/prices")
    address, secrets = build_psql_address(url)
    assert address == "postgresql://me@a:1,b:2/prices?target_session_attrs=read-write"
    assert secrets == {"PGPASSWORD": "s:cret"}
