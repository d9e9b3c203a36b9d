"""Every choice of the network as a field of one frozen dataclass, and reading such dataclasses.

Where the choices come from:

===================  ==========================================================================
the paper's abstract  a preliminary result from a simple module; an encoder-decoder guided by a soft
                      mask; kernels per pixel, decoupled into a spatial and a channel part, applied
                      to the preliminary result
its sibling KPN-MFI   5×5 kernels; no normalisation layers; three stride-2 downs, residual blocks,
                      pixel-shuffle ups and additive skips; a soft mask per channel with τ = 0.05;
                      the undecoupled head of 3·K² numbers (``head="undecoupled"``)
our own               the response curve as preliminary module; the mask of dark pixels; guidance by
                      scale and shift; the network at half resolution; softmax taps; the bounded
                      channel gain; the pooled branch; every width and depth
===================  ==========================================================================
"""

import dataclasses
import itertools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Config = TypeVar("Config")


@dataclass(frozen=True)
class DKPNConfig:
    """The network's choices; the default has 2.0 million parameters.

    Args:
        kernel_size: side K of the square filter, odd.
        head: what is predicted and how it is combined. ``"gain"``: K² spatial taps and 3 channel
            gains per pixel. ``"mix"``: K² spatial taps and a 3 × 3 matrix that mixes the channels
            per pixel. ``"per-image"``: K² spatial taps per pixel and 3·K² channel taps per image
            (the form of decoupled dynamic filters). ``"undecoupled"``: 3·K² taps per pixel.
            ``"feature"``: as ``"gain"``, in a space of ``feature_channels`` channels that a 1 × 1
            convolution brings back to RGB. ``"preliminary"``: nothing; the preliminary result is
            the result (for ablation).
        feature_channels: C of ``head="feature"``.
        taps: ``"softmax"``: positive, of sum 1, so that range comes from the channel filter alone
            (only where that has numbers per pixel). ``"exp"``: positive, of any sum.
        max_gain_stops: bound of a channel gain or, with ``"exp"``, of a tap, in stops (factors of
            2).
        mask_tau: width τ of the soft masks, in sRGB-encoded units of [0, 1].
        mask_squared: square the soft masks.
        guidance: let the soft masks guide the features at every scale; False is for ablation.
        width: channels at the network's first scale.
        channel_multipliers: channels at each scale, as multiples of ``width``; each scale after the
            first halves the resolution.
        encoder_blocks: residual blocks at each scale on the way down.
        decoder_blocks: residual blocks at each scale but the last, on the way up, same order.
        unshuffle: the first scale is the input folded by this factor (2: half resolution).
        curve_knots: sRGB-encoded values at which the pooled branch predicts the slope of the
            inverse response curve; ascending from 0 to 1.
        max_black: bound of the linear radiance that the pooled branch predicts for black, above
            0.001; 1.0 = clip level.
        pooled_width: channels of the pooled branch.
        dark_floor: smallest sRGB-encoded value told from black; half a code value of 8 bits is
            1/510.
    """

    kernel_size: int = 5
    head: Literal["gain", "mix", "per-image", "undecoupled", "feature", "preliminary"] = "gain"
    feature_channels: int = 16
    taps: Literal["softmax", "exp"] = "softmax"
    max_gain_stops: float = 5.0
    mask_tau: float = 0.05
    mask_squared: bool = False
    guidance: bool = True
    width: int = 32
    channel_multipliers: tuple[int, ...] = (1, 2, 3, 4)
    encoder_blocks: tuple[int, ...] = (1, 1, 2, 3)
    decoder_blocks: tuple[int, ...] = (1, 1, 2)
    unshuffle: int = 2
    curve_knots: tuple[float, ...] = (0.0, 0.1, 0.3, 0.6, 0.85, 1.0)
    max_black: float = 0.1
    pooled_width: int = 32
    dark_floor: float = 1 / 510

    def __post_init__(self) -> None:
        heads = ("gain", "mix", "per-image", "undecoupled", "feature", "preliminary")
        _require_choice("head", self.head, heads)
        _require_choice("taps", self.taps, ("softmax", "exp"))
        if self.head in ("per-image", "undecoupled") and self.taps == "softmax":
            raise ValueError(
                f'taps: expected "exp" with head="{self.head}", got "softmax"; taps of sum 1 '
                "cannot leave the range of the preliminary result without a channel gain"
            )
        for name in ("kernel_size", "width", "unshuffle", "pooled_width", "feature_channels"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _require(self.kernel_size % 2 == 1, "kernel_size", "an odd number", self.kernel_size)
        _require(self.max_gain_stops > 0, "max_gain_stops", "more than 0", self.max_gain_stops)
        _require(0 < self.mask_tau <= 0.5, "mask_tau", "a value in (0, 0.5]", self.mask_tau)
        _require(0 < self.dark_floor < 0.1, "dark_floor", "a value in (0, 0.1)", self.dark_floor)
        _require(0.001 < self.max_black < 1, "max_black", "a value in (0.001, 1)", self.max_black)
        scales = len(self.channel_multipliers)
        _require(
            scales >= 1 and min(self.channel_multipliers) >= 1,
            "channel_multipliers",
            "one multiple of at least 1 for each scale",
            self.channel_multipliers,
        )
        for name, count in (("encoder_blocks", scales), ("decoder_blocks", scales - 1)):
            blocks = getattr(self, name)
            _require(
                len(blocks) == count and all(block >= 0 for block in blocks),
                name,
                f"{count} counts for {scales} channel_multipliers",
                blocks,
            )
        knots = self.curve_knots
        ascending = all(low < high for low, high in itertools.pairwise(knots))
        _require(
            len(knots) >= 2 and knots[0] == 0 and knots[-1] == 1 and ascending,
            "curve_knots",
            "ascending values from 0 to 1",
            knots,
        )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels at each scale."""
        return tuple(self.width * multiple for multiple in self.channel_multipliers)

    @property
    def channel_numbers(self) -> int:
        """Numbers of the channel filter that are predicted for each pixel."""
        return {"gain": 3, "mix": 9, "feature": self.feature_channels}.get(self.head, 0)

    @property
    def size_multiple(self) -> int:
        """Number of which the padded height and width are multiples."""
        return self.unshuffle * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def max_log_gain(self) -> float:
        """Bound of the gain's natural logarithm."""
        return self.max_gain_stops * math.log(2.0)


@dataclass(frozen=True)
class TrainConfig:
    """Length and pace of the training.

    Args:
        iterations: optimizer steps.
        minutes: training also ends after so many minutes (validation not counted); the learning
            rate then falls with whichever of the two is further. None: no limit.
        batch_size: samples a step, of all processes and parts together.
        accumulate: parts that each process's share of a batch is made in, one after the other, for
            less memory; the step is the same up to rounding.
        curve_photos: training photos whose code values the response curve is fitted to before the
            first iteration, see :mod:`dkpn.curve_fit`; at most as many as the iterations will see,
            and as are made in a twentieth of ``minutes``. 0: none. Fine-tuned weights keep theirs.
        learning_rate: of AdamW, after the warm-up.
        warmup: iterations in which the learning rate rises linearly; at most a tenth of all.
        final_learning_rate: share of ``learning_rate`` at the end of the cosine.
        weight_decay: of AdamW.
        gradient_clip: largest L2 norm of all gradients together.
        ema_decay: of the moving average of the weights; lower in the first iterations.
        validate_every: iterations between two validations; there is one at the start and the end.
        validation_images: largest number of images validated on, spread over all there are.
        checkpoint_every: iterations between two checkpoints.
        keep_checkpoints: number of checkpoints kept.
        precision: of the network's convolutions: ``"float32"``, ``"bfloat16"`` (autocast; weights,
            curve and filter stay in float32), or ``"auto"``: bfloat16 on a GPU. On CPUs with
            bfloat16 instructions it halves the time of a step.
        head: of :class:`dkpn.model.DKPN`: ``"fused"`` keeps no taps and takes less memory.
        compile: compile the network with ``torch.compile``; the first step then takes a minute.
        tensorboard: write the metrics for TensorBoard as well, which has to be installed.
        seed: of the first weights and of the training pairs.
    """

    iterations: int = 20_000
    minutes: float | None = None
    batch_size: int = 8
    accumulate: int = 1
    curve_photos: int = 8192
    learning_rate: float = 5e-4
    warmup: int = 50
    final_learning_rate: float = 0.02
    weight_decay: float = 1e-4
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    validate_every: int = 500
    validation_images: int = 16
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    head: Literal["stored", "fused"] = "stored"
    compile: bool = False
    tensorboard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        positive = (
            "iterations",
            "batch_size",
            "accumulate",
            "learning_rate",
            "gradient_clip",
            "validate_every",
            "validation_images",
            "checkpoint_every",
            "keep_checkpoints",
        )
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)!r}")
        _require_choice("precision", self.precision, ("auto", "float32", "bfloat16"))
        _require_choice("head", self.head, ("stored", "fused"))
        for name in ("curve_photos", "warmup", "weight_decay", "seed", "final_learning_rate"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)!r}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected a value in [0, 1), got {self.ema_decay!r}")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes: expected more than 0, got {self.minutes!r}")
        self.parts(0, processes=1)

    def parts(self, iteration: int, processes: int, rank: int = 0) -> list[range]:
        """The samples of a step that one of several processes makes.

        Args:
            iteration: optimizer steps done before.
            processes: how many share the batch.
            rank: which of them, from 0.

        Returns:
            Their indices in the run, one range for each of the ``accumulate`` parts.

        Raises:
            ValueError: the batch cannot be divided equally.
        """
        share, rest = divmod(self.batch_size, processes * self.accumulate)
        if rest:
            raise ValueError(
                f"batch_size: expected a multiple of {processes} processes times accumulate = "
                f"{self.accumulate}, got {self.batch_size}"
            )
        start = iteration * self.batch_size + rank * self.accumulate * share
        starts = range(start, start + self.accumulate * share, share)
        return [range(first, first + share) for first in starts]

    def in_bfloat16(self, device_type: str) -> bool:
        """Whether the network runs in bfloat16 on such a device."""
        return self.precision == "bfloat16" or (self.precision == "auto" and device_type == "cuda")


def _require(condition: bool, name: str, expected: str, actual: object) -> None:
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {actual!r}")


def _require_choice(name: str, actual: str, choices: tuple[str, ...]) -> None:
    expected = " or ".join(f'"{choice}"' for choice in choices)
    _require(actual in choices, name, expected, actual)


def config_from_dict(kind: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """Build a dataclass from parsed JSON or TOML.

    Args:
        kind: a dataclass with a default for every field.
        values: field names and values; lists stand for tuples, integers may stand for floats.
        where: what to call the source in errors, e.g. ``"run.toml [model]"``.

    Returns:
        An instance of ``kind``.

    Raises:
        TypeError: ``values`` is no table, or a value has the wrong type.
        ValueError: a field is unknown, or its value is out of range.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"{where}: expected a table of names and values, got {values!r}")
    hints = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(
            f"{where}: unknown field {', '.join(map(repr, unknown))}; known are {', '.join(known)}"
        )
    fields = {
        name: _converted(value, hints[name], f"{where}: {name}") for name, value in values.items()
    }
    try:
        return kind(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _converted(value: Any, hint: Any, where: str) -> Any:
    """The value as its annotation wants it; lists become tuples, integers floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        hint = next(argument for argument in arguments if argument is not type(None))
        return _converted(value, hint, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{where}: expected a list, got {value!r}")
        hints = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(hints) != len(value):
            raise ValueError(f"{where}: expected {len(hints)} values, got {list(value)!r}")
        return tuple(
            _converted(item, item_hint, where) for item, item_hint in zip(value, hints, strict=True)
        )
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return config_from_dict(hint, value, where)
    expected: type = str if origin is Literal else hint
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is a subclass of int, but "true" as a count is a slip of the pen.
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise TypeError(f"{where}: expected {expected.__name__}, got {value!r}")
    return value


def config_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Name the fields in which two parsed configurations differ, each with both values."""
    names = sorted(set(first) | set(second))
    return [
        f"{name}: {first.get(name, 'absent')!r} and {second.get(name, 'absent')!r}"
        for name in names
        if name not in first or name not in second or first[name] != second[name]
    ]
