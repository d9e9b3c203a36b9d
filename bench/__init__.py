"""Benchmarks of kpnops against the alternatives.

    pytest bench/                          the default cases of this machine
    pytest bench/ --full                   every case, on a CPU too
    pytest bench/ -k "K5 and not compiled" some of them
    pytest bench/ --benchmark-disable      check every provider, time nothing
    pytest bench/ --results cpu-2core.json write bench/results/cpu-2core.json and .png
    python -m bench.report FILE.json       the README's table of such a file
    python -m bench.gpu                    GPU tests and the whole matrix, in parts; also `make gpu`
    python -m bench.tune                   a sweep of launch parameters on a GPU

Every provider's result and gradients are compared with a float64 reference before it is timed. The
providers of one case take turns, so that a slow spell of the machine meets all of them.
"""
