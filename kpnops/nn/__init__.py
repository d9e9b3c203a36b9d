"""Modules around :func:`kpnops.decoupled_filter`.

:class:`FilterNorm`, :class:`DDFPack` and :class:`DDFUpPack` have the parameters of the modules of
the same name in DDF (https://github.com/theFoxofSky/ddfnet), with their names, shapes and initial
values: state dicts that were trained there load, and give the same output. The formulas are those
of Zhou et al., "Decoupled Dynamic Filter Networks", CVPR 2021.
"""

from ._ddf import DDFPack, DDFUpPack
from ._decoupled_filter2d import DecoupledFilter2d
from ._filter_norm import FilterNorm

__all__ = ["DDFPack", "DDFUpPack", "DecoupledFilter2d", "FilterNorm"]
