"""Benchmarks of kpnops against the alternatives.

    pytest bench/                          the default cases of this machine
    pytest bench/ --full                   every case, on a CPU too
    pytest bench/ -k "K5 and not compiled" some of them
    pytest bench/ --benchmark-disable      check every provider, time nothing
    pytest bench/ --results cpu-2core.json write bench/results/cpu-2core.json and .png
    pytest bench/bench_predict_filter.py --results cpu-2core --merge    some rows of that file anew
    python -m bench.report FILE.json       the README's table of such a file
    python -m bench.gpu                    GPU tests and the whole matrix, in parts; also `make gpu`
    python -m bench.static                 counts from compiled kernels, without a GPU
    python -m bench.static_head            the same of predict_filter
    python -m bench.tune                   a sweep of launch parameters on a GPU

Rows are of `kpnops.decoupled_filter`, of `kpnops.predict_filter` and of a training step of `dkpn`.
Every provider's result and gradients are compared with a float64 reference before it is timed, and
a training step's gradient with that of the naive filter. The providers of one case take turns, so
that a slow spell of the machine meets all of them.
"""
