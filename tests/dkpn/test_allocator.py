import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
import torch
from dkpn.allocator import reuse_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12 * 2**20)  # 48 MiB, 12,288 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
if not reuse_freed_memory():
    sys.exit(77)
faults()
counts = [usual, faults()]
thread = threading.Thread(target=lambda: counts.append(faults()))
thread.start()
thread.join()
print(*counts)
"""


def test_freed_memory_is_used_again_by_all_threads():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode == 77:
        pytest.skip("the C library of this platform is not glibc")
    assert done.returncode == 0, done.stderr
    usual, kept, in_thread = map(int, done.stdout.split())
    if usual < 1000:
        pytest.skip("this system has large pages, or keeps freed memory anyway")
    assert kept < usual / 20
    assert in_thread < usual / 20
