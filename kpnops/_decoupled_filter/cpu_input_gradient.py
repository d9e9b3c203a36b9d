"""The gradient of the input, from strips of the output."""

from torch import Tensor

from .cpu_split import Split, reach, tap_views
from .geometry import source_index

__all__ = ["InputGradient"]


class InputGradient:
    """Gradient of the input of some images, from strips of the output's rows in their order.

    What the taps send back is added up in a window of rows of the padded input. Those that no later
    strip reaches are written, the others are carried over to the window of the next strip.
    """

    def __init__(self, call: Split, target: Tensor):
        self._call = call
        self._target = target  # (B, C, H, W)
        H, W = call.input.shape[2:]
        self._after = call.window.after((H, W), (call.rows, call.spatial.shape[4]))
        self._window: Tensor | None = None  # (B, C, rows, width), of the repeated input
        self._carried: Tensor | None = None
        # Rows of the padding, by the row of the input that they stand for: (B, C, W)
        self._outside: dict[int, Tensor] = {}
        # Rows of the input that rows of the padding below it stand for, kept in full precision
        self._waiting: dict[int, Tensor] = {}
        self._stood_for = {self._source(y) for y in range(H, H + self._after[0])}
        self._stood_for.discard(-1)  # padding of zeros

    def _source(self, y: int) -> int:
        return source_index(y, self._call.input.shape[2], self._call.window.padding_mode)

    def begin(self, rows: slice) -> None:
        """Open the window of the strip ``rows``."""
        call, window = self._call, self._call.window
        B, C, _, W = call.input.shape
        height = max(
            (rows.stop - rows.start - 1) * window.stride[0] + reach(window, 0) + 1,
            self._finished(rows),
        )
        columns = (window.before[1] + W + self._after[1]) * window.scale
        read = (call.spatial.shape[4] - 1) * window.stride[1] + reach(window, 1) + 1
        self._window = self._target.new_zeros(B, C, height, max(columns, read), dtype=call.dtype)
        if self._carried is not None:
            self._window[:, :, : self._carried.shape[2]] = self._carried

    def add(self, chunk: Split, grad_sums: Tensor, rows: slice) -> None:
        """Add what ``rows`` of the strip, which are those of ``chunk``, send back."""
        assert self._window is not None
        target = chunk.split(self._window[:, :, rows.start * chunk.window.stride[0] :])
        taps = zip(tap_views(target, chunk), chunk.spatial_taps(), strict=True)
        for tap, (view, spatial) in enumerate(taps):
            view.addcmul_(grad_sums, chunk.filter_at(tap, spatial))

    def end(self, rows: slice) -> None:
        """Write the rows that are finished and carry over the others."""
        assert self._window is not None
        window, H = self._call.window, self._call.input.shape[2]
        finished = self._finished(rows)
        image = self._fold_columns(_sum_of_repeats(self._window[:, :, :finished], window.scale))
        top = rows.start * window.stride[0] // window.scale - window.before[0]
        self._carried = self._window[:, :, finished:].clone()
        self._window = None
        if window.padding_mode != "zeros":
            bottom = min(top + image.shape[2], H + self._after[0])
            for y in (*range(top, min(bottom, 0)), *range(max(top, H), bottom)):
                self._add_outside(self._source(y), image[:, :, y - top])
        start, stop = max(top, 0), min(top + image.shape[2], H)
        for y in [y for y in self._outside if start <= y < stop]:
            image[:, :, y - top] += self._outside.pop(y)
        for y in self._stood_for:
            if start <= y < stop:
                self._waiting[y] = image[:, :, y - top].clone()
        self._target[:, :, start:stop] = image[:, :, start - top : stop - top]
        if rows.stop == self._call.rows:
            for y, row in self._outside.items():
                self._target[:, :, y] = self._waiting[y].add_(row)

    def _finished(self, rows: slice) -> int:
        """Rows of the window of a strip that no later one adds to."""
        window, H = self._call.window, self._call.input.shape[2]
        finished = (rows.stop - rows.start) * window.stride[0]
        if rows.stop < self._call.rows:
            return finished
        top = rows.start * window.stride[0] - window.before[0] * window.scale
        return (H + self._after[0]) * window.scale - top

    def _add_outside(self, source: int, row: Tensor) -> None:
        if source in self._outside:
            self._outside[source] += row
        else:
            self._outside[source] = row.clone()

    def _fold_columns(self, padded: Tensor) -> Tensor:
        """Add the columns of the padding to those that they stand for: ``(B, C, rows, W)``."""
        W, window = self._call.input.shape[3], self._call.window
        left = window.before[1]
        image = padded[..., left : left + W]
        if window.padding_mode != "zeros":
            for x in (*range(-left, 0), *range(W, W + self._after[1])):
                image[..., source_index(x, W, window.padding_mode)] += padded[..., x + left]
        return image


def _sum_of_repeats(padded: Tensor, scale: int) -> Tensor:
    """Add up what was sent to the ``scale * scale`` repetitions of each position."""
    if scale == 1:
        return padded
    parts = [padded[:, :, y::scale, x::scale] for y in range(scale) for x in range(scale)]
    total = parts[0].clone()
    for part in parts[1:]:
        total.add_(part)
    return total
