"""Compile-only: what the kernels compile to for sm_90 keeps the limits of `bench/static_gates.py`.

Needs no GPU. A few launches here, the table in the slow tests; `python -m bench.static` prints it.
"""

import pytest

pytest.importorskip("triton", reason="Triton is not installed: there is nothing to compile")

from bench.static import TARGET, chosen, line
from bench.static_count import count
from bench.static_gates import missed
from kpnops._decoupled_filter import route

pytestmark = pytest.mark.skipif(
    route.interpreted(), reason="TRITON_INTERPRET=1: kernels are interpreted, not compiled"
)


def check(only, cold=True):
    found = [count(*item, TARGET, cold) for item in chosen(only)]
    assert found, f"no row is called {only!r}"
    for row in found:
        print(line(row))  # with the seconds that it took
    broken = {row.name: missed(row) for row in found if missed(row)}
    assert not broken, "\n".join(f"{name}: {'; '.join(said)}" for name, said in broken.items())


@pytest.mark.parametrize("width", ["W16", "Wodd"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel_size", ["K3", "K5"])
def test_forward_with_gains(kernel_size, dtype, width):
    # those of the first width are compiled for test_compile.py too: the cache has them
    check(f"C64 {kernel_size} {dtype} pixel {width} forward", cold=width != "W16")


@pytest.mark.parametrize(
    "only",
    [
        "C3 K5 bfloat16 pixel W16 forward",
        "C3 K5 float32 pixel W16 fused_bwd_kernel",
        "C64 K5 float32 pixel W16 grad_input",
        "C64 K3 float32 image W16 tile_bwd_channel_kernel",
    ],
)
def test_other_kernels(only):
    check(only, cold=False)


@pytest.mark.slow
@pytest.mark.parametrize("channels", ["C3", "C64"])
@pytest.mark.parametrize("kernel_size", ["K3", "K5", "K7"])
@pytest.mark.parametrize("dtypes", ["float32", "bfloat16", "bfloat16+float32"])
def test_every_row(channels, kernel_size, dtypes):
    check(f"{channels} {kernel_size} {dtypes}")


@pytest.mark.slow
@pytest.mark.parametrize("kernel_size", ["K11", "K17"])
def test_every_row_of_wide_filters(kernel_size):
    if not any(chosen(f"C64 {kernel_size}")):
        pytest.skip("wide filters take the general kernels")
    check(f"C64 {kernel_size}")
