"""The first minute: what ``make`` installs, with what, and what it says when it cannot.

Python, pip and uv are stand-ins that write down how they were called.
"""

import os
import pty
import re
import shutil
import subprocess
import sys
import venv
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import install
from market_pipeline_tests import hashes
from market_pipeline_tests.commands import COMMAND_SECONDS, ROOT, SCRIPTS

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
LOCKED = """\
# for: dev system
mypy==2 \\
    --hash=sha256:11
# for: product
numpy==1 \\
    --hash=sha256:22
# for: uv
uv==3 \\
    --hash=sha256:33
"""
CHECKED = "--require-hashes --no-deps -r .venv/wanted.txt"
WHEELS = "--only-binary :all:"
PRODUCT = "--no-deps --no-build-isolation -e ."
STAND_IN = '#!/bin/sh\necho "$(basename $0) $*" >> calls\n'
PYTHON = f"""\
case "$1" in
install.py) mkdir -p .venv/bin; cp -n "$0" .venv/bin/python; cp -n "$0" .venv/bin/market-pipeline;;
-c) exec {sys.executable} "$@";;
esac
"""


def write_program(path: Path, body: str = "") -> Path:
    """Write a program that notes its call and then runs a body."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STAND_IN + body)
    path.chmod(0o755)
    return path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in a folder with the real Makefile and a Python that installs nothing."""
    for name in ("Makefile", "setup.py", "hashes.txt"):
        if not (folder / name).exists():
            shutil.copy(ROOT / name, folder)
    python = write_program(folder / "python", PYTHON)
    return subprocess.run(
        ["make", f"PYTHON={python}", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False,
    )  # fmt: skip


def take_calls(folder: Path) -> list[str]:
    """Return the calls since the last time, without what looks at the machine or compiles."""
    file = folder / "calls"
    calls = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [call for call in calls if not call.startswith(("python -c ", "python -m compileall"))]


def test_each_task_installs_what_it_needs_and_nothing_twice(tmp_path: Path) -> None:
    """Tasks of developers build on what running the product needs; an edited setup.py counts."""
    setup = ["python install.py", "market-pipeline init"]
    assert make(tmp_path, "ingest").returncode == 0
    assert take_calls(tmp_path) == [*setup, "market-pipeline ingest"]
    make(tmp_path, "ingest")
    assert take_calls(tmp_path) == ["market-pipeline ingest"]
    make(tmp_path, ".venv/.stamp-dev")
    assert take_calls(tmp_path) == ["python install.py dev"]
    make(tmp_path, ".venv/.stamp-system")
    assert take_calls(tmp_path) == ["python install.py dev system"]
    newer = (tmp_path / ".venv" / ".stamp-system").stat().st_mtime + 1
    os.utime(tmp_path / "setup.py", (newer, newer))
    make(tmp_path, ".venv/.stamp-dev")
    assert take_calls(tmp_path) == [*setup, "python install.py dev"]


@pytest.mark.parametrize(
    "task", ["test", "test-writer", "test-watch", "lint", "types", "contracts"]
)
def test_what_only_developers_use_comes_with_their_tasks(task: str, tmp_path: Path) -> None:
    """Each of them runs on a fresh clone."""
    assert "install.py dev" in make(tmp_path, "-n", task).stdout


@pytest.mark.parametrize("task", ["ingest", "dev", "web", "serve", "scheduler"])
def test_who_runs_the_product_installs_no_test_tools(task: str, tmp_path: Path) -> None:
    """Nor does anything of theirs slow down the first run."""
    shown = make(tmp_path, "-n", task).stdout
    assert "install.py" in shown
    assert "install.py dev" not in shown


def say_no(folder: Path, sitecustomize: str) -> str:
    """Return what make says to a Python that was changed at its start; nothing may be made."""
    for name in ("Makefile", "setup.py", "hashes.txt", "install.py"):
        shutil.copy(ROOT / name, folder)
    (folder / "sitecustomize.py").write_text(sitecustomize)
    run = f'exec env PYTHONPATH={folder} {sys.executable} "$@"\n'
    python = write_program(folder / "python", run)
    refused = subprocess.run(
        ["make", f"PYTHON={python}", "setup"],
        cwd=folder, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False,
    )  # fmt: skip
    assert refused.returncode != 0
    assert not (folder / ".venv").exists()
    return refused.stderr


def test_a_missing_venv_module_is_named_with_its_package(tmp_path: Path) -> None:
    """As Debian ships Python."""
    said = say_no(tmp_path, "import sys; sys.modules['ensurepip'] = None")
    assert f"Error: Python {VERSION} comes without its venv module" in said
    assert f"sudo apt-get install python{VERSION}-venv" in said


def test_an_old_python_is_named_with_what_is_needed(tmp_path: Path) -> None:
    """Before its syntax errors could be."""
    said = say_no(tmp_path, "import sys; sys.version_info = (3, 9, 2)")
    assert "is Python 3.9, and 3.11 or newer is needed" in said
    assert "make PYTHON=python3.12" in said


def test_no_python_at_all_is_said(tmp_path: Path) -> None:
    """Not by an error of the shell."""
    refused = make(tmp_path, "setup", "PYTHON=python9.99")
    assert "python9.99 was not found: install Python 3.11 or newer" in refused.stderr


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose environment exists, with a pip that works."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    write_program(tmp_path / ".venv/bin/python")
    (tmp_path / ".venv/pyvenv.cfg").write_text(f"version = {VERSION}.0\n")
    (tmp_path / "hashes.txt").write_text(LOCKED)
    return tmp_path


def test_a_full_disk_is_said_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With how much there is and how much it takes."""
    monkeypatch.chdir(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=300_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(install.InstallError, match=r"0\.3 GB are free .* take 1 GB: make room"):
        install.main([])
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_is_said(environment: Path) -> None:
    """With the program's own words and the cure."""
    full = 'echo "OSError: [Errno 28] No space left on device"; exit 1'
    write_program(environment / ".venv/bin/python", full)
    with pytest.raises(install.InstallError, match=r"Errno 28(.|\n)*make room on the disk"):
        install.main([])


def test_uv_installs_nothing_but_files_of_known_checksums(environment: Path) -> None:
    """Then the product itself, built by what was installed."""
    write_program(environment / ".venv/bin/uv")
    install.main(["dev"])
    uv = "uv pip install --python .venv/bin/python"
    assert take_calls(environment) == [
        "python -m pip config list", f"{uv} {CHECKED} --compile-bytecode", f"{uv} {PRODUCT}"
    ]  # fmt: skip
    wanted = (environment / ".venv/wanted.txt").read_text()
    assert wanted == "mypy==2 \\\n    --hash=sha256:11\nnumpy==1 \\\n    --hash=sha256:22\n"


def test_uv_itself_is_checked(environment: Path) -> None:
    """Only its own lines are given to pip."""
    install.install_uv()
    assert take_calls(environment)[-1].endswith(
        f"pip install --disable-pip-version-check {CHECKED} {WHEELS}"
    )
    assert (environment / ".venv/wanted.txt").read_text() == "uv==3 \\\n    --hash=sha256:33\n"


@pytest.fixture(scope="module")
def real_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an environment of its own, and a registry of one package."""
    folder = tmp_path_factory.mktemp("real")
    venv.create(folder / ".venv", with_pip=True)
    pages = folder / "simple" / "tiny"
    pages.mkdir(parents=True)
    name = "tiny-1.0-py3-none-any.whl"
    with ZipFile(pages / name, "w") as wheel:
        wheel.writestr("tiny.py", "")
        wheel.writestr(
            "tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
        )
        wheel.writestr(
            "tiny-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    (pages / "index.html").write_text(f'<a href="{name}">{name}</a>')
    return folder


@pytest.mark.parametrize("has_uv", [True, False], ids=["uv", "pip"])
def test_a_file_of_another_checksum_stops_the_installation_and_is_said(
    has_uv: bool,
    real_environment: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The real programs and a registry whose file was exchanged: no other program tries it then."""
    monkeypatch.chdir(real_environment)
    monkeypatch.setenv("PIP_INDEX_URL", (real_environment / "simple").as_uri())
    uv = real_environment / install.UV
    uv.unlink(missing_ok=True)
    if has_uv:
        uv.symlink_to(SCRIPTS / "uv")
    else:
        write_program(uv, 'echo "error: no uv here"; exit 1\n')
    lines = f"# for: product\ntiny==1.0 --hash=sha256:{'0' * 64}\n"
    (real_environment / "hashes.txt").write_text(lines)
    with pytest.raises(
        install.InstallError, match=r"tiny(.|\n)*another checksum than hashes.txt names"
    ):
        install.main([])
    assert ("pip goes on" in capsys.readouterr().out) is not has_uv
    assert list(real_environment.glob(".venv/lib/*/site-packages/tiny*")) == []


def test_a_name_that_nothing_is_known_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image without what its EXTRAS name would fail much later."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(install.InstallError, match="knows nothing that celary needs"):
        install.select("product", "celary", "otel")


def read_locked(*names: str) -> dict[str, str]:
    """Return the versions that hashes.txt has for the product, extras or uv."""
    return dict(re.findall(r"^([^ =]+)==([^ ]+)", install.select(*names), re.MULTILINE))


def test_every_version_is_that_of_the_constraints_and_has_a_checksum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No file is installed that was not named, and none from another address."""
    monkeypatch.chdir(ROOT)
    names = ("uv", "product", *hashes.EXTRAS)
    text = install.select(*names)
    pins = re.findall(r"^([^#=]+)==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    pinned = {canonicalize_name(name): version for name, version in pins}
    locked = read_locked(*names)
    assert {name: pinned[name] for name in locked if name in pinned} == {
        name: version for name, version in locked.items() if name in pinned
    }
    assert len(
        re.findall(r"^[^ ]+==.* \\\n    --hash=sha256:[0-9a-f]{64}( \\)?$", text, re.MULTILINE)
    ) == len(re.findall(r"^[^ ]+==", text, re.MULTILINE))
    assert "://" not in text


@pytest.mark.parametrize("extra", ["", *hashes.EXTRAS])
def test_whatever_is_asked_for_and_needed_by_it_is_locked(
    extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is added behind the checksums' back: what is installed here needs nothing else."""
    monkeypatch.chdir(ROOT)
    locked = read_locked("product", *filter(None, [extra]))
    asked = [Requirement(one) for one in requires("market-pipeline") or []]
    left = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": extra})]
    seen = set()
    while left:
        needed = left.pop()
        name = canonicalize_name(needed.name)
        assert name in locked, f"{needed}: run `python -m market_pipeline_tests.hashes`"
        assert needed.specifier.contains(locked[name], prereleases=True), needed
        for wanted in [needed.extras or {""}] if (name, str(needed.extras)) not in seen else []:
            seen.add((name, str(needed.extras)))
            with suppress(PackageNotFoundError):  # of bench and celery, which tests do not install
                inner = [Requirement(one) for one in requires(name) or []]
                left += [
                    one for one in inner
                    if one.marker is None or any(one.marker.evaluate({"extra": x}) for x in wanted)
                ]  # fmt: skip


def test_pips_registry_is_uvs_registry(environment: Path) -> None:
    """Packages come from where the company says, also from uv, which does not read pip.conf."""
    listed = (
        "global.extra-index-url='file:///x'\\nglobal.index-url='https://here.example/simple'\\n"
    )
    write_program(environment / ".venv/bin/python", f'printf "{listed}"\n')
    write_program(environment / ".venv/bin/uv", 'echo "at $UV_DEFAULT_INDEX" >> calls\n')
    install.main([])
    assert take_calls(environment)[-1] == "at https://here.example/simple"


@pytest.mark.parametrize("has_uv", [True, False], ids=["uv fails", "no uv"])
def test_without_uv_pip_goes_on_after_one_sentence(
    has_uv: bool, environment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A registry that knows no uv, a platform that uv has no wheel for: a clone works anyway."""
    failing = 'echo "error: no route to the registry"; exit 1\n'
    if has_uv:
        write_program(environment / ".venv/bin/uv", failing)
    else:
        write_program(
            environment / ".venv/bin/python", f'case "$*" in *version-check*) {failing};; esac'
        )
    install.main([])
    said = capsys.readouterr().out
    expected = "uv does not work here (error: no route to the registry): pip goes on"
    assert said.count(expected) == 1
    assert take_calls(environment)[-2:] == [
        f"python -m pip install {CHECKED} {WHEELS}", f"python -m pip install {PRODUCT}"
    ]  # fmt: skip


def test_an_environment_of_another_python_is_made_anew(environment: Path) -> None:
    """`make PYTHON=python3.12` after python3.11 mixes nothing."""
    (environment / ".venv/pyvenv.cfg").write_text("version = 3.2.0\n")
    write_program(environment / "python")
    install.sys.executable, kept = str(environment / "python"), sys.executable
    try:
        install.make_environment()
    finally:
        install.sys.executable = kept
    assert take_calls(environment) == ["python -m venv --clear .venv"]


def test_a_terminal_sees_that_it_goes_on(environment: Path) -> None:
    """Seconds and the program's last words, in one line that fits the terminal."""
    (environment / "busy").write_text("echo Downloading pyarrow; sleep 1.2\n")
    code = "import install; install.run('Installing the packages', ['sh', 'busy'])"
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "60"}, stdout=theirs,
    ):  # fmt: skip
        pass
    os.close(theirs)
    shown = os.read(ours, 65_536).decode()
    assert re.search(r"Installing the packages: \d+ s  Downloading pyarrow", shown)
    assert re.search(r"\x1b\[KInstalling the packages: \d+ s\r\n$", shown)
    assert max(map(len, shown.replace("\x1b[K", "").split("\r"))) < 60
