"""What a user gets: a pure-Python wheel and a source archive that import and run by themselves."""

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build", reason="the package 'build' is not installed: no wheel can be built")

ROOT = Path(__file__).resolve().parents[1]

# Runs without site-packages' .pth files, so that only the wheel can provide the packages.
USE_THE_WHEEL = """
import sys
sys.path[:0] = [{wheel!r}, {site_packages!r}]
import kpnops
assert kpnops.__file__.startswith({wheel!r}), kpnops.__file__
loaded = {{"triton", "dkpn"}} & set(sys.modules)
assert not loaded, loaded
import torch
image, taps = torch.rand(1, 3, 6, 7, requires_grad=True), torch.rand(1, 9, 6, 7)
output = kpnops.decoupled_filter(image, taps, normalize="softmax")
output.sum().backward()
torch.testing.assert_close(
    output, kpnops.reference.decoupled_filter(image, taps, normalize="softmax")
)
import dkpn.cli
"""


def run(*command: str, directory: Path) -> str:
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive and the wheel that is built from it."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("kpnops", "dkpn", "pyproject.toml", "README.md", "LICENSE"):
        run("cp", "-r", str(ROOT / name), str(copy), directory=ROOT)
    target = tmp_path_factory.mktemp("archives")
    build = ("-m", "build", "--no-isolation", "--outdir", str(target), str(copy))
    run(sys.executable, *build, directory=copy)
    return target


def test_wheel_is_pure_python_with_type_information(archives: Path) -> None:
    (wheel,) = archives.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "kpnops/py.typed" in names
    assert "kpnops/_decoupled_filter/launch_table.json" in names
    assert "dkpn/cli.py" in names
    for data in (
        "configs/default.toml",
        "page/viewer.html",
        "weights/model.safetensors",
        "weights/fine_tune.toml",
    ):
        assert f"dkpn/{data}" in names
    packages = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert packages == {"kpnops", "dkpn"}
    (source,) = archives.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = archive.getnames()
    assert any(name.endswith("kpnops/_decoupled_filter/op.py") for name in names)
    assert any(name.endswith("LICENSE") for name in names)


def test_wheel_runs_by_itself(archives: Path, tmp_path: Path) -> None:
    (wheel,) = archives.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    site_packages = sysconfig.get_paths()["purelib"]
    program = USE_THE_WHEEL.format(wheel=str(tmp_path), site_packages=site_packages)
    run(sys.executable, "-S", "-c", program, directory=tmp_path)
