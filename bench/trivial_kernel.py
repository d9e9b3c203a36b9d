"""A kernel that loads Triton's driver, so that the first real kernel need not."""

import triton
import triton.language as tl


@triton.jit
def _trivial_kernel(out_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)  # [BLOCK]
    tl.store(out_ptr + offs, offs)
