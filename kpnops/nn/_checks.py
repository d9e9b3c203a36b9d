"""What the modules share: checks that name the argument, and the text of ``repr``."""

from torch import Tensor

from .._decoupled_filter.validation import is_integer

__all__ = ["arguments", "check_choice", "check_image", "count"]


def check_image(name: str, image: Tensor, channels: int) -> None:
    """ValueError where ``image`` is not ``(B, channels, H, W)``."""
    if image.dim() != 4 or image.shape[1] != channels:
        raise ValueError(f"{name}: expected shape (B, {channels}, H, W), got {tuple(image.shape)}")


def check_choice(name: str, value: object, allowed: tuple[str | None, ...]) -> None:
    """ValueError where ``value`` is not in ``allowed``."""
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")


def count(name: str, value: int) -> int:
    """``value`` as an int; TypeError or ValueError where it is no integer of at least 1."""
    if not is_integer(value):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__} {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value)


def arguments(**values: object) -> str:
    """``name=value`` of each, as in a call."""
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
