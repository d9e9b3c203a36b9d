"""What a run says of its machine and its sources."""

from pathlib import Path

import pytest
import torch

from bench import environment
from bench.environment import Hardware, commit, driver_version, file_name, source_digest


@pytest.fixture(autouse=True)
def fresh_answers():
    commit.cache_clear()
    source_digest.cache_clear()
    yield
    commit.cache_clear()
    source_digest.cache_clear()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", "nvidia-h200"),
        ("NVIDIA H100 80GB HBM3", "nvidia-h100"),
        ("NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm4-80gb"),
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
        ("AMD Instinct MI300X", "amd-instinct-mi300x"),
    ],
)
def test_files_are_named_after_the_device(name, expected):
    assert file_name(Hardware("cuda", name, "some CPU", 16, 16, 2**36)) == expected


def test_files_of_a_cpu_are_named_after_its_cores():
    assert file_name(Hardware("cpu", "some CPU", "some CPU", 2, 1, 2**36)) == "cpu-2core"


def test_commit_can_be_told_where_there_is_no_git(monkeypatch):
    monkeypatch.setenv("COMMIT", "abc1234")
    assert commit() == "abc1234"


def test_commit_is_unknown_without_git(monkeypatch, tmp_path):
    monkeypatch.delenv("COMMIT", raising=False)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert commit() == "unknown"


def test_digest_changes_with_the_sources(monkeypatch, tmp_path):
    (tmp_path / "__init__.py").write_text("")
    kernels = tmp_path / "kernels.py"
    digests = []
    monkeypatch.setattr(environment.kpnops, "__file__", str(tmp_path / "__init__.py"))
    for text in ("a = 1", "a = 2", "a = 1"):
        kernels.write_text(text)
        source_digest.cache_clear()
        digests.append(source_digest())
    assert digests[0] == digests[2] != digests[1]


def test_a_cpu_has_no_driver():
    assert driver_version(torch.device("cpu")) is None


def test_root_is_the_repository():
    assert (environment.ROOT / "bench").samefile(Path(environment.__file__).parent)
