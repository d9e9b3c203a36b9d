"""Tensors in safetensors files; pickles are refused, with the way to convert them."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

_PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".pkl", ".pickle")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        The tensors by name, on the CPU, and the metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or no safetensors file; of a pickled one the message has the
            command that converts it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected tensors in safetensors format")
    _refuse_pickle(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a complete safetensors file ({error}); copy or train it again"
        ) from None


def _refuse_pickle(path: Path) -> None:
    """Refuse what pickle has written, whatever it is called, before anything reads it."""
    with path.open("rb") as file:
        head = file.read(9)
    # The header of a safetensors file, in JSON, comes behind its length in 8 bytes.
    if head[8:] == b"{":
        return
    refusal = f"{path}: not a safetensors file, and no pickle is loaded, since it can run any code"
    if path.suffix.lower() in _PICKLE_SUFFIXES:
        there = path.as_posix()
        converted = path.with_name(f"{path.stem}_converted.safetensors").as_posix()
        raise ValueError(
            f'{refusal}; convert a state dict with: python -c "import torch, safetensors.torch as '
            f's; s.save_file(torch.load({there!r}, weights_only=True), {converted!r})" and keep '
            "the config.json of its network beside it"
        )
    if head[:2] == b"PK" or head[:1] == b"\x80":
        raise ValueError(f"{refusal}; rename it to {path.stem}.pth to see how it is converted")
