"""The weights that come with the package, and the one call that loads a network."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dkpn.model import DKPN

SHIPPED = Path(__file__).parent / "weights"
"""The folder of the package's own weights: ``model.safetensors``, ``config.json``, its card."""


def load(weights: str | Path | None = None, device: str | torch.device | None = None) -> "DKPN":
    """Load a network that is ready to use.

    Nothing is downloaded: the default weights lie in the package.

    Args:
        weights: ``model.safetensors``, or a folder that holds it, such as a run of ``dkpn train``;
            by default the package's own.
        device: where the network shall lie; by default a GPU where there is one.

    Returns:
        The network in evaluation mode; see :meth:`dkpn.DKPN.infer`.

    Raises:
        FileNotFoundError: there is no such file, or the folder holds no weights.
        ValueError: the file is damaged, of another program, or does not fit its configuration.

    >>> import numpy as np
    >>> photo = np.full((4, 6, 3), 128, np.uint8)
    >>> dkpn_network = load(device="cpu")
    >>> dkpn_network.infer(photo).shape
    (4, 6, 3)
    """
    from dkpn.checkpoint import load_weights

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_weights(SHIPPED if weights is None else weights).to(device)
