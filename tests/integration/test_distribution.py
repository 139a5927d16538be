"""The source distribution, and the wheel that is built from it."""

import email
import email.policy
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile

import pytest
import yaml

from support.programs import ROOT, unmeasured
from wse.server.files import JS_MODULES

RAW = "raw.githubusercontent.com"


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
    command = [sys.executable, "-B", "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
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


def test_the_wheel_has_the_javascript_client_with_its_types(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        found = {name.removeprefix("wse/js/") for name in archive.namelist() if name.startswith("wse/js/")}
    assert found == {*JS_MODULES, "wse.d.ts", "wse-trace.d.ts"}


def test_the_wheel_has_the_operations_page(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        found = {name.rpartition("/")[2] for name in archive.namelist() if name.startswith("wse/admin/static/")}
    assert found == {"index.html", "console.css", "console.js"}


def test_the_page_on_pypi_has_no_relative_links(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        metadata = email.message_from_bytes(archive.read(name), policy=email.policy.default)
    version, page = metadata["Version"], metadata.get_payload()
    assert metadata["Description-Content-Type"] == "text/markdown"
    urls = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL"))
    source = urls["Source"]
    targets = re.findall(r"\]\(([^)]+)\)", page)
    assert targets
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    for target in targets:  # what it links to is there
        for root in (f"{source}/blob/v{version}/", f"{source.replace('github.com', RAW)}/v{version}/"):
            if target.startswith(root):
                assert (ROOT / target.removeprefix(root).partition("#")[0]).exists(), target
    assert f"({source.replace('github.com', RAW)}/v{version}/docs/explanation/speed.svg)" in page


def test_the_npm_package_names_the_same_repository():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    package = json.loads((ROOT / "js" / "package.json").read_text())
    source = project["urls"]["Source"]
    assert package["repository"]["url"] == f"git+{source}.git"
    assert package["bugs"] == project["urls"]["Issues"]
    assert package["version"] == project["version"]


SMALL = """
import asyncio, wse

async def main():
    server = wse.WseServer(lambda auth: auth.accept("ada"), port=0)
    server.register("add", lambda conn, payload: payload["a"] + payload["b"])
    async with server, wse.WseClient(server.url) as client:
        print(wse.__file__, await client.call("add", {"a": 1, "b": 2}))

asyncio.run(main())
"""


@pytest.mark.slow
def test_the_wheel_is_installed_in_an_empty_environment(built, tmp_path):
    _, wheel = built
    venv.create(tmp_path / "empty", with_pip=True)
    python = tmp_path / "empty" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    environment = {name: value for name, value in unmeasured().items() if not name.startswith("PYTHON")}

    def run(*args):
        done = subprocess.run(
            [python, *args], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    assert run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel))[0] == 0
    status, stdout, stderr = run("-W", "error", "-c", SMALL)
    assert (status, stderr) == (0, "")
    assert stdout.startswith(str(tmp_path / "empty"))
    assert stdout.endswith(" 3\n")
    assert run("-m", "wse", "version")[2] == 'the wse command needs the click library: pip install "wse[cli]"\n'
    assert run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}[cli]")[0] == 0
    assert run("-m", "wse", "version")[:2] == (0, "0.1.0\n")


def test_the_release_publishes_without_secrets_what_was_tested():
    text = ROOT / ".github" / "workflows" / "release.yml"
    if not text.exists():
        pytest.skip("this is not a clone of the repository")
    workflow = yaml.safe_load(text.read_text())
    assert "${{ secrets" not in text.read_text()
    assert workflow["permissions"] == {"contents": "read"}
    jobs = workflow["jobs"]
    assert {name for name, job in jobs.items() if job.get("permissions")} == {"pypi", "npm"}
    for name in ("pypi", "npm"):
        assert (jobs[name]["permissions"], jobs[name]["needs"]) == ({"id-token": "write"}, "build")
    commands = [step.get("run", "") for step in jobs["build"]["steps"]]
    assert commands[-2:-1] == ['make dist TAG="$GITHUB_REF_NAME"']


def test_the_wheel_holds_the_package_only(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
        python = {name for name in archive.namelist() if name.endswith(".py")}
    assert {top.partition("-")[0] for top in tops} == {"wse"}
    assert python == {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "wse").rglob("*.py")}
