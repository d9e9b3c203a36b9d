"""DKPN: one 8-bit photo in, a high-dynamic-range image out.

The network predicts a small filter for every pixel, decoupled into a spatial and a channel part,
and applies it to a preliminary HDR result with :func:`kpnops.decoupled_filter`. Modules:

* ``config``, ``blocks``, ``heads``, ``fused_head``, ``model``: the network, all of its choices in
  one dataclass; ``pretrained``: its weights;
* ``photos``: photos in; ``infer``, ``tiles``, ``jobs``, ``reconstruct``: through the network;
  ``outputs``, ``hdr_io``, ``exr_file``, ``rgbe_file``, ``strips``: results out; ``viewer``,
  ``export``;
* ``data``, ``prepare``, ``prepared``, ``scenes``, ``views``, ``camera``, ``photograph``, ``jpeg``,
  ``training_pairs``: what is trained on;
* ``train``, ``curve_fit``, ``losses``, ``schedule``, ``parallel``, ``checkpoint``,
  ``tensor_file``, ``monitor``, ``run_config``, ``run_folder``, ``training_data``, ``ablation``: the
  training;
* ``evaluate``, ``metrics``, ``columns``, ``pairs``, ``resources``, ``report``: the judgement;
* ``color``, ``primaries``: units; ``cli``, ``commands``, ``allocator``: the command line; ``demo``.

Images are linear Rec.709, and 1.0 is the clip level of the photo, taken as diffuse white, 203
cd/m².

References:
    Cao, Zhou, Liu, Wang, Fan: "A Decoupled Kernel Prediction Network Guided by Soft Mask for Single
    Image HDR Reconstruction", ACM TOMM 19(2s), 2023, doi 10.1145/3550277. Its abstract is what this
    package follows; ``dkpn.config`` says which choices are the paper's and which are our own.
"""

from dkpn.config import DKPNConfig
from dkpn.model import DKPN, DKPNOutput
from dkpn.pretrained import load

__all__ = ["DKPN", "DKPNConfig", "DKPNOutput", "load"]
