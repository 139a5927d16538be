"""The source distribution, and the wheel that is built from it."""

import subprocess
import sys
import tarfile
import zipfile

import pytest

from support.programs import ROOT, unmeasured


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder that the source distribution unpacks to, and the wheel that is built there."""
    folder = tmp_path_factory.mktemp("built")
    build("sdist", ROOT, folder)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    source = folder / archive.name.removesuffix(".tar.gz")
    build("wheel", source, folder)
    (wheel,) = folder.glob("*.whl")
    return source, wheel


def build(target, source, folder):
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_source_distribution_has_no_stray_files(built):
    source, _ = built
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if git.returncode:
        pytest.skip("this is not a clone of the repository")
    tracked = set(git.stdout.splitlines())
    assert names(source) - tracked == {"PKG-INFO"}
    left_out = {name.partition("/")[0] for name in tracked - names(source) if (ROOT / name).exists()}
    assert left_out == {".ci", ".github", ".pre-commit-config.yaml"}


def test_the_wheel_works_without_the_source(built, tmp_path):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    assert (tmp_path / "wse" / "py.typed").is_file()
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import wse; from wse.cli import main; "
        "wse.WseServer(serve_client=True); print(wse.__file__, wse.js_client_path())"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(  # its modules would be measured as files of their own, beside those in src
        command, cwd=tmp_path, env=unmeasured(), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(tmp_path / "wse" / "__init__.py"), str(tmp_path / "wse" / "js" / "wse.js")]


def test_the_wheel_holds_the_package_only(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
        python = {name for name in archive.namelist() if name.endswith(".py")}
    assert {top.partition("-")[0] for top in tops} == {"wse"}
    assert python == {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "wse").rglob("*.py")}
