import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from dkpn.allocator import reuse_freed_memory

if sys.argv[1] == "kept" and not reuse_freed_memory():
    sys.exit(77)
import torch

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12 * 2**20)  # 48 MiB, 12,288 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def faults(how):
    """Pages that were new to the process."""
    command = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode == 77:
        pytest.skip("the C library of this platform is not glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_freed_memory_is_used_again():
    usual = faults("given back")
    if usual < 1000:
        pytest.skip("this system has large pages, or keeps freed memory anyway")
    assert faults("kept") < usual / 20
