"""Packages of the extra ``dkpn``, imported only where a file needs them."""

from importlib import import_module
from typing import Any

INSTALL = 'pip install "kpnops[dkpn]"'


def require(module: str, install: str = INSTALL) -> Any:
    """Import a package, or say how to install it.

    Args:
        module: name to import, e.g. ``"PIL.Image"``.
        install: the command that installs it.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: it is not installed; the message has the command.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = "Pillow" if module.startswith("PIL") else module.partition(".")[0]
        raise ModuleNotFoundError(
            f"{package} is needed for this file and is not installed: {install}", name=module
        ) from error
