"""The first step of a training: the response curve alone, fitted to the code values of photos.

The pooled branch sees nothing of a photo but statistics, and predicts one curve over 256 code
values. So a photo can be replaced by these statistics and, for each code value, how often it occurs
and what the truth is there on average: thousands of photos, each seen many times, then cost less
than a hundred iterations of the whole network, which sees a few photos in each.
"""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from dkpn.blocks import PooledBranch
from dkpn.losses import BRIGHT, PU21_PEAK, pu21_units
from dkpn.model import DKPN
from dkpn.parallel import Processes
from dkpn.schedule import StopRequest, bar_interval
from dkpn.training_pairs import TrainingPairs

LEAST_PHOTOS, PHOTOS_AT_ONCE = 64, 16
EPOCHS, BATCH_SIZE = 32, 64
LEARNING_RATE, WARMUP = 2e-3, 50
# Of AdamW. The photos are views of a few dozen scenes, which could be learned by heart.
WEIGHT_DECAY = 0.7
GRADIENT_CLIP = 1.0
# Added to the squared error of each photo: no reward for a curve of far more than 30 dB PU21-PSNR,
# since other errors of the result are larger.
SQUARED_ERROR_FLOOR = 1e-3 * PU21_PEAK**2


@dataclass(frozen=True)
class CodeValues:
    """Photos and truths without the pictures; indexing takes some of the photos.

    Args:
        statistics: (N, numbers), of :meth:`dkpn.blocks.PooledBranch.statistics`.
        share: (N, 256), share of each code in the values, of all channels, that are not clipped.
        mean: (N, 256), mean of the truth in PU21 units where the photo has a code.
        variance: (N,), mean squared distance of the truth from these means.
    """

    statistics: Tensor
    share: Tensor
    mean: Tensor
    variance: Tensor

    def __getitem__(self, chosen: Tensor) -> "CodeValues":
        return CodeValues(
            self.statistics[chosen], self.share[chosen], self.mean[chosen], self.variance[chosen]
        )

    def squared_error(self, curve: Tensor) -> Tensor:
        """What each photo's values, decoded by a curve, have as mean squared error in PU21 units.

        Args:
            curve: (N, 256), linear light of each code, 1.0 = clip level.

        Returns:
            (N,), the same up to rounding as from the pictures.
        """
        difference = pu21_units(curve) - self.mean
        return (self.share * difference.square()).sum(1) + self.variance


def code_values(branch: PooledBranch, photo: Tensor, truth: Tensor) -> CodeValues:
    """Take what a curve can be fitted to from photos and truths.

    Args:
        branch: whose statistics are taken.
        photo: (N, 3, H, W), code values / 255.
        truth: (N, 3, H, W), linear, 1.0 = clip level.
    """
    codes = (photo * 255.0).round().clamp(0.0, 255.0).long().flatten(1)
    light = pu21_units(truth).flatten(1)
    # JPEG darkens what lies beside a highlight, and brightens beside a shadow.
    used = ((codes < 255 * BRIGHT) & (truth.flatten(1) < 1.0)).float()

    def sums(values: Tensor) -> Tensor:
        return torch.zeros(len(codes), 256, device=codes.device).scatter_add(1, codes, values)

    counts = sums(used)
    mean = sums(used * light) / counts.clamp_min(1.0)
    total = counts.sum(1, keepdim=True).clamp_min(1.0)
    distance = (light - mean.gather(1, codes)).square()
    variance = (used * distance).sum(1) / total[:, 0]
    return CodeValues(branch.statistics(photo), counts / total, mean, variance)


def fit_curve(
    network: DKPN,
    pairs: TrainingPairs,
    photos: int,
    *,
    seed: int = 0,
    seconds: float = math.inf,
    processes: Processes | None = None,
    stop: StopRequest | None = None,
    quiet: bool = True,
) -> None:
    """Standardise the statistics of the pooled branch, then fit it and the response curve.

    Args:
        network: fresh; its ``pooled`` and ``preliminary`` change in place.
        pairs: the training set, of which the first ones are taken.
        photos: number of photos to fit to; below 64 nothing is fitted, and the statistics are
            standardised by 64 of them.
        seed: of the order in which photos are seen.
        seconds: that making the photos may take: fewer are made where more would take longer.
        processes: that do the same, and have to take as many photos each; None: this one alone.
        stop: asked after every few photos and every step; the fit ends where it is requested.
        quiet: no progress bar.
    """
    stop, processes = stop or StopRequest(), processes or Processes()

    def make(first: int, last: int) -> CodeValues:
        return code_values(network.pooled, *pairs.batch(range(first, last)))

    begun = time.monotonic()
    starts = range(0, LEAST_PHOTOS, PHOTOS_AT_ONCE)
    made = [make(first, first + PHOTOS_AT_ONCE) for first in starts]
    _, taken = processes.agree(0, time.monotonic() - begun)
    photos = int(min(photos, LEAST_PHOTOS * seconds / taken))
    starts = range(LEAST_PHOTOS, photos, PHOTOS_AT_ONCE)
    bar = tqdm(
        starts, desc="response curve", disable=quiet, leave=False, mininterval=bar_interval()
    )
    for first in bar:
        if stop.requested:
            bar.close()
            return
        made.append(make(first, min(first + PHOTOS_AT_ONCE, photos)))
    fields = ("statistics", "share", "mean", "variance")
    samples = CodeValues(*(torch.cat([getattr(one, name) for one in made]) for name in fields))
    network.pooled.standardise(samples.statistics)
    if photos >= LEAST_PHOTOS:
        _fit(network, samples, seed, stop)


def predicted_curve(network: DKPN, statistics: Tensor) -> Tensor:
    """The curve that a network predicts: (N, 256), linear light of each code, 1.0 = clip level.

    Args:
        network: of which ``pooled`` and ``preliminary`` are used.
        statistics: (N, numbers), of :meth:`dkpn.blocks.PooledBranch.statistics`.
    """
    ramp = torch.linspace(0.0, 1.0, 256, device=statistics.device)
    pooled = network.pooled.from_statistics(statistics)
    return network.preliminary(ramp.expand(len(statistics), 1, 1, 256), pooled)[:, 0, 0].exp()


def _fit(network: DKPN, samples: CodeValues, seed: int, stop: StopRequest) -> None:
    parameters = [*network.pooled.parameters(), *network.preliminary.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=WEIGHT_DECAY)
    count = len(samples.statistics)
    steps = EPOCHS * count // BATCH_SIZE
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        if stop.requested:
            break
        cosine = 0.5 * (1.0 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * cosine
        chosen = torch.randint(count, (BATCH_SIZE,), generator=generator)
        batch = samples[chosen.to(samples.mean.device)]
        error = batch.squared_error(predicted_curve(network, batch.statistics))
        loss = torch.log(error + SQUARED_ERROR_FLOOR).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)
        optimizer.step()
    for parameter in parameters:
        parameter.grad = None
