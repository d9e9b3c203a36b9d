"""DKPN: one 8-bit photo in, a high-dynamic-range image out.

The network predicts a small filter for every pixel, decoupled into a spatial and a channel part,
and applies it to a preliminary HDR result with :func:`kpnops.decoupled_filter`. Modules:

* ``config``, ``blocks``, ``model``: the network, all of its choices in one dataclass;
* ``color``, ``camera``, ``hdr_io``, ``scenes``, ``data``: units, training pairs, files;
* ``losses``, ``train``, ``checkpoint``: the training loop;
* ``infer``, ``metrics``, ``evaluate``, ``cli``, ``demo``: use and judgement.

Images are linear Rec.709, and 1.0 is the clip level of the photo, taken as diffuse white, 203
cd/m².

References:
    Cao, Zhou, Liu, Wang, Fan: "A Decoupled Kernel Prediction Network Guided by Soft Mask for Single
    Image HDR Reconstruction", ACM TOMM 19(2s), 2023, doi 10.1145/3550277. Its abstract is what this
    package follows; ``dkpn.config`` says which choices are the paper's and which are our own.
"""

from dkpn.config import DKPNConfig
from dkpn.model import DKPN, DKPNOutput

__all__ = ["DKPN", "DKPNConfig", "DKPNOutput"]
