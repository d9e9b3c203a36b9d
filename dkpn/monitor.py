"""What a training run shows: metrics as CSV, a plot of them, and a picture of the validation."""

import csv
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from dkpn.checkpoint import TrainingState, save_weights, write_json
from dkpn.color import linear_to_srgb, srgb_to_linear, tone_map
from dkpn.hdr_io import write_atomically, write_png
from dkpn.losses import LossConfig, LossTerms, reconstruction_loss
from dkpn.model import DKPN, DKPNOutput
from dkpn.parallel import Processes

if TYPE_CHECKING:
    from PIL import Image

COLUMNS: tuple[str, ...] = (
    "iteration",
    "split",  # "train": mean since the row before; "validation": mean over the validation images
    "total",
    "image",
    "clipped",
    "preliminary",
    "multi_scale",
    "gradient",
    "psnr",  # PU21-PSNR in dB after the fitted gain
    "gradient_norm",  # L2 norm of all gradients together, before clipping
    "learning_rate",
    "seconds",  # of training so far
)
PICTURE_ROWS = 4  # validation images shown
CELL = 360  # pixels, longest side of a picture in a table of pictures
PANEL_CELL = 200  # the same for validation, which draws three rows an image, again and again
COMPARISON_TITLES = ("photo", "preliminary", "result", "truth")
PANEL_TITLES = ("photo", "preliminary", "mask", "result", "truth")
EXPOSURES = (0.0, 2.0, 4.0)  # stops darker than the photo
TERMS = ("total", "image", "clipped", "preliminary", "multi_scale", "gradient", "psnr")

ValidationPair = tuple[str, np.ndarray, np.ndarray]


class Recorder:
    """Collects what a run measures and writes it into the run's folder.

    Args:
        out: the run's folder.
        validation: (name, photo uint8 (H, W, 3), truth float32 (H, W, 3)) for each image.
        loss: of the validation.
        iteration: where the run starts or goes on; later rows of an older file are dropped.
        processes: that train together; only the first one validates and writes.
        tensorboard: write files for TensorBoard, too, into the folder ``tensorboard``.

    Raises:
        ModuleNotFoundError: TensorBoard is asked for and not installed.
    """

    def __init__(
        self,
        out: Path,
        validation: Sequence[ValidationPair],
        loss: LossConfig,
        iteration: int,
        processes: Processes | None = None,
        tensorboard: bool = False,
    ) -> None:
        self.out, self.validation, self.loss = out, validation, loss
        self.processes = processes or Processes()
        self.best, self.board = math.inf, None
        self._numbers: list[Tensor] = []
        if not self.processes.leads:
            return
        self.metrics = MetricsFile(out / "metrics.csv", iteration)
        for row in read_metrics(self.metrics.path):
            if row["split"] == "validation":
                self.best = min(self.best, float(row["total"]))
        if tensorboard:
            self.board = _tensorboard(out / "tensorboard", iteration)

    def add(self, terms: LossTerms, gradient_norm: Tensor) -> None:
        """Remember the numbers of one training step, without waiting for the device."""
        numbers = [getattr(terms, name) for name in TERMS]
        self._numbers.append(torch.stack([*numbers, gradient_norm]))

    def log(self, state: TrainingState, seconds: float, rate: float) -> tuple[float, float]:
        """Write a training row with the means, over all processes, since the row before.

        Args:
            state: of the training.
            seconds: of training so far.
            rate: the learning rate.

        Returns:
            Mean loss and mean PU21-PSNR in dB.

        Raises:
            FloatingPointError: the loss, or the norm of its gradient, is not finite.
        """
        means = torch.stack(self._numbers).mean(dim=0)
        self._numbers.clear()
        self.processes.average([means])
        *numbers, norm = means.tolist()
        for name, value in (("loss", numbers[0]), ("norm of the gradient", norm)):
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the {name} is {value} at iteration {state.iteration}; lower learning_rate "
                    f"(it is {rate:g}) and go on from the last checkpoint in "
                    f"{self.out / 'checkpoints'}"
                )
        row = {"gradient_norm": f"{norm:.6g}", "learning_rate": f"{rate:.4g}"}
        self._write(state, "train", numbers, seconds, row)
        return numbers[0], numbers[-1]

    def validate(self, state: TrainingState, seconds: float) -> None:
        """Validate the averaged weights: a row, a plot, a picture, and a line on the terminal.

        The best weights so far, by ``total``, are written to the folder ``best``.

        Args:
            state: of the training.
            seconds: of training so far.

        Raises:
            FloatingPointError: the loss of the validation is not finite.
        """
        if not self.validation or not self.processes.leads:
            return
        pictures = self.out / "validation"
        pictures.mkdir(exist_ok=True)
        picture = pictures / f"{state.iteration:08d}.png"
        means = validate(state.ema, self.validation, self.loss, picture)
        if not math.isfinite(means[0]):
            raise FloatingPointError(
                f"the loss of the validation is {means[0]} at iteration {state.iteration}; go on "
                f"from the last checkpoint in {self.out / 'checkpoints'} with a lower learning_rate"
            )
        self._write(state, "validation", means, seconds, {})
        plot_metrics(self.metrics.path, self.out / "metrics.png")
        if means[0] < self.best:
            self.best = means[0]
            save_weights(self.out / "best", state.ema)
            numbers = {"iteration": state.iteration, **dict(zip(TERMS, means, strict=True))}
            write_json(self.out / "best" / "validation.json", numbers)
        tqdm.write(
            f"iteration {state.iteration}: validation loss {means[0]:.3f}, "
            f"PU21-PSNR {means[-1]:.2f} dB"
        )

    def close(self) -> None:
        """Write what TensorBoard has not been given yet."""
        if self.board is not None:
            self.board.close()

    def _write(
        self,
        state: TrainingState,
        split: str,
        means: Sequence[float],
        seconds: float,
        more: dict[str, str],
    ) -> None:
        if not self.processes.leads:
            return
        row: dict[str, str] = dict(zip(TERMS, (f"{mean:.6g}" for mean in means), strict=True))
        row |= {"iteration": str(state.iteration), "split": split, "seconds": f"{seconds:.1f}"}
        row |= more
        self.metrics.append(row)
        if self.board is not None:
            for name in (*TERMS, *more):
                self.board.add_scalar(f"{name}/{split}", float(row[name]), state.iteration)


def _tensorboard(folder: Path, iteration: int) -> Any:
    """A writer for TensorBoard; what an older one wrote of later iterations is marked as gone."""
    if find_spec("tensorboard") is None:
        raise ModuleNotFoundError(
            "tensorboard = true needs a package that is not installed: pip install tensorboard",
            name="tensorboard",
        )
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=iteration + 1 if iteration > 0 else None)


@torch.inference_mode()
def validate(
    model: DKPN, validation: Sequence[ValidationPair], config: LossConfig, picture: Path | None
) -> list[float]:
    """Mean of every loss term over images, each whole and alone.

    Args:
        model: the network.
        validation: (name, photo uint8 (H, W, 3), truth float32 (H, W, 3)) for each image.
        config: of the loss.
        picture: PNG file to draw the first images into; its folder exists.

    Returns:
        The terms in the order of ``TERMS``; the last one is the PU21-PSNR in dB.
    """
    device = next(model.parameters()).device
    sums, rows = torch.zeros(len(TERMS), dtype=torch.float64), []
    for index, (_, photo_array, truth_array) in enumerate(validation):
        photo = rearrange(torch.from_numpy(photo_array), "h w c -> 1 c h w").to(device) / 255.0
        truth = rearrange(torch.from_numpy(truth_array), "h w c -> 1 c h w").to(device)
        output = model(photo)
        terms = reconstruction_loss(output, photo, truth, config)
        sums += torch.tensor([float(getattr(terms, name)) for name in TERMS], dtype=torch.float64)
        if picture is not None and index < PICTURE_ROWS:
            rows += panel(photo, output, truth)
    if picture is not None and rows:
        write_pictures(picture, rows, PANEL_TITLES, PANEL_CELL)
    return (sums / len(validation)).tolist()


class MetricsFile:
    """A CSV file of metrics that grows row by row and survives being stopped anywhere.

    Args:
        path: the file; rows of iterations after ``iteration`` are dropped, since a resumed run
            writes them again.
        iteration: where the run starts or goes on.
    """

    def __init__(self, path: Path, iteration: int) -> None:
        self.path = path
        kept = [row for row in read_metrics(path) if int(row["iteration"]) <= iteration]
        if iteration == 0:
            kept = []
        write_atomically(path, lambda temporary: _write_rows(temporary, kept))

    def append(self, row: dict[str, str]) -> None:
        """Add one row."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Read the rows of a metrics file; none if the file does not exist.

    A last row without an end, which a process has not finished writing, is left out.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        whole = [line for line in file if line.endswith("\n")]
    return list(csv.DictReader(whole))


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def plot_metrics(metrics: Path, picture: Path) -> None:
    """Draw loss and PSNR over the iterations, training and validation, into a PNG file."""
    # The object interface: pyplot would keep global state and might want a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(metrics)
    figure = Figure(figsize=(9, 3.6))
    figure.subplots_adjust(left=0.07, right=0.99, bottom=0.15, top=0.97, wspace=0.18)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    titles = (("total", "loss"), ("psnr", "PU21-PSNR after gain (dB)"))
    for panel, (column, title) in zip(panels, titles, strict=True):
        for split, style in (("train", {"alpha": 0.5}), ("validation", {"marker": "o", "ms": 3})):
            chosen = [row for row in rows if row["split"] == split]
            x = [int(row["iteration"]) for row in chosen]
            y = [float(row[column]) for row in chosen]
            panel.plot(x, y, label=split, **style)
            if split == "validation" and y:
                panel.axhline(y[0], color="0.6", lw=0.8, ls="--", label="untrained")
        panel.set(xlabel="iteration", ylabel=title)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    write_atomically(picture, lambda temporary: figure.savefig(temporary, dpi=120))


def comparison(photo: Tensor, preliminary: Tensor, result: Tensor, truth: Tensor) -> Tensor:
    """Put photo, preliminary result, result and truth side by side.

    The last three share one exposure and tone curve, so that brightness can be compared.

    Args:
        photo: (3, H, W), sRGB-encoded in [0, 1].
        preliminary: (3, H, W), linear, 1.0 = clip level.
        result: (3, H, W), linear, 1.0 = clip level.
        truth: (3, H, W), linear, 1.0 = clip level.

    Returns:
        (4, 3, H, W), sRGB-encoded in [0, 1].
    """
    side_by_side = tone_map(torch.cat((preliminary, result, truth), dim=-1))
    return torch.stack((photo, *side_by_side.chunk(3, dim=-1)))


def panel(photo: Tensor, output: DKPNOutput, truth: Tensor) -> list[Tensor]:
    """Show the steps from a photo to its result, at three exposures.

    Args:
        photo: (1, 3, H, W), sRGB-encoded in [0, 1].
        output: of the network for ``photo``.
        truth: (1, 3, H, W), linear, 1.0 = clip level.

    Returns:
        A row for each of ``EXPOSURES``, (5, 3, H, W), sRGB-encoded in [0, 1]: photo, preliminary
        result, mask, result and truth. All but the mask are as a photo exposed that much darker; a
        mask is white where a channel is over-, black where it is under-exposed.
    """
    over, under = output.masks[0].chunk(2)
    mask = 0.5 + 0.5 * over - 0.5 * under
    light = (srgb_to_linear(photo[0]), output.preliminary[0], output.result[0], truth[0])
    rows = []
    for stops in EXPOSURES:
        first, preliminary, result, last = (darker(image, stops) for image in light)
        rows.append(torch.stack((first, preliminary, mask, result, last)))
    return rows


def darker(image: Tensor, stops: float) -> Tensor:
    """Show an HDR image (3, H, W) as a photo exposed so many stops darker, sRGB, in [0, 1]."""
    return linear_to_srgb((image * 2.0**-stops).clamp(0.0, 1.0))


def write_pictures(
    path: Path, rows: Sequence[Tensor], titles: Sequence[str], cell: int = CELL
) -> None:
    """Write a table of pictures as PNG, with a title over each column.

    Args:
        path: the file; its folder exists.
        rows: (columns, 3, H, W) each, sRGB-encoded in [0, 1]; sizes may differ between rows, and
            what is larger than ``cell`` is shrunk.
        titles: one for each column.
        cell: longest side of a picture, pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    gap, header, font = 6, 26, ImageFont.load_default(size=15)
    cells = [[_thumbnail(picture, cell) for picture in row] for row in rows]
    width = max(row[0].width for row in cells) + gap
    height = header + sum(row[0].height + gap for row in cells)
    canvas = Image.new("RGB", (width * len(titles) - gap, height), "white")
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        draw.text((column * width + 4, header // 2), title, fill="black", font=font, anchor="lm")
    top = header
    for row in cells:
        for column, picture in enumerate(row):
            canvas.paste(picture, (column * width, top))
        top += row[0].height + gap
    write_png(path, np.array(canvas))


def _thumbnail(picture: Tensor, cell: int) -> "Image.Image":
    """A picture (3, H, W), sRGB-encoded in [0, 1], shrunk to at most ``cell`` pixels a side."""
    from PIL import Image

    array = rearrange((picture * 255.0).round().byte().cpu(), "c h w -> h w c").numpy()
    thumbnail = Image.fromarray(array)
    thumbnail.thumbnail((cell, cell), Image.Resampling.LANCZOS)
    return thumbnail
