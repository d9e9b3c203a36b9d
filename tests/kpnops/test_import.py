"""What `import kpnops` brings, and what it must not load."""

import subprocess
import sys

PROGRAM = """
import sys, torch
before = set(sys.modules)
import kpnops
loaded = set(sys.modules) - before
# PyTorch has modules of its own with these words in their names; it may load them, kpnops not.
heavy = ("triton", "dkpn", "torch._dynamo", "torch._inductor", "torch._functorch", "sympy")
print(sorted(name for name in loaded if any(word in name for word in heavy)))
kpnops.nn.DDFPack, kpnops.compat.ddf, kpnops.reference.decoupled_filter
print(sorted(name for name in kpnops.__all__ if not hasattr(kpnops, name)))
"""


def test_import_is_light_and_complete():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n[]\n"
