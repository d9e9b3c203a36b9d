"""The whole way in a few minutes on a CPU: train a small network, reconstruct a photo, judge it.

``python -m dkpn.demo --out demo [--data DIR] [--minutes 4]`` leaves in the output folder:

=======================  =================================================================
``photo.jpg``             a photo of a scene that was not trained on
``photo.exr``             its reconstruction, linear, 1.0 = clip level = 203 cd/m²
``photo_preview.png``     the same, tone-mapped
``comparison.png``        photo, preliminary result, result and truth of several such scenes
``highlights.png``        photo, result and truth, exposed 2 and 4 stops darker
``training.png``          loss and PSNR over the iterations
``table.md``              the evaluation, ``per_image.csv`` the numbers of each image
``run``                   the training run, with its weights and checkpoints
=======================  =================================================================
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange

from dkpn.config import DKPNConfig, TrainConfig
from dkpn.data import (
    DataConfig,
    EvaluationPair,
    evaluation_pairs,
    find_images,
    make_evaluation_pair,
    split_by_scene,
)
from dkpn.evaluate import LDR, Evaluation, evaluate
from dkpn.hdr_io import write_atomically
from dkpn.infer import encoded_batch, plan_reconstructions, reconstruct_file
from dkpn.model import DKPN
from dkpn.monitor import COMPARISON_TITLES, comparison, darker, write_pictures
from dkpn.scenes import generate_scenes
from dkpn.train import (
    GENERATED_SIDE,
    RunConfig,
    StopRequest,
    find_resume,
    leave_cores_to,
    spread,
    train,
    training_data,
)

HELD_OUT = 12  # scenes that judge the result
SHOWN = 4


def demo_config(minutes: float) -> RunConfig:
    """A network and a schedule that a laptop's CPU gets somewhere with in a few minutes."""
    return RunConfig(
        model=DKPNConfig(width=24, channel_multipliers=(1, 2, 3, 4), encoder_blocks=(1, 1, 1, 2)),
        # Crops shrunk from most of an image show its lights and its shadows, as a photo does.
        data=DataConfig(crop_size=128, max_shrink=2.0, rotate=False),
        train=TrainConfig(
            iterations=3000,
            minutes=minutes,
            batch_size=4,
            learning_rate=1e-3,
            ema_decay=0.99,
            validate_every=200,
            validation_images=8,
            checkpoint_every=1000,
            keep_checkpoints=1,
            workers=1,
        ),
    )


def held_out_pairs(data: Path | None) -> list[EvaluationPair]:
    """Photos, by the evaluation protocol, of scenes that the demo does not train on."""
    if data is None:
        # Seed 0 made the training scenes, seed 1 the validation scenes.
        scenes = generate_scenes(HELD_OUT, GENERATED_SIDE, seed=2)
        return [make_evaluation_pair(scene, f"scene{i:02d}.exr") for i, scene in enumerate(scenes)]
    _, held_out = split_by_scene(find_images(data))
    return list(evaluation_pairs(data, spread(held_out, HELD_OUT)))


def draw(model: DKPN, pairs: Sequence[EvaluationPair], out: Path) -> None:
    """Write ``comparison.png`` and ``highlights.png`` of the first pairs."""
    comparisons, highlights = [], []
    for pair in pairs[:SHOWN]:
        photo = encoded_batch(pair.input)
        truth = rearrange(torch.from_numpy(pair.target), "h w c -> c h w")
        with torch.inference_mode():
            output = model(photo)
        result = output.result[0]
        comparisons.append(comparison(photo[0], output.preliminary[0], result, truth))
        preliminary = output.preliminary[0]
        images = [
            darker(image, stops) for stops in (2, 4) for image in (preliminary, result, truth)
        ]
        highlights.append(torch.stack((photo[0], *images)))
    write_pictures(out / "comparison.png", comparisons, COMPARISON_TITLES)
    titles = [f"{name}, -{stops} stops" for stops in (2, 4) for name in COMPARISON_TITLES[1:]]
    write_pictures(out / "highlights.png", highlights, ["photo", *titles])


def run_demo(out: Path, data: Path | None, config: RunConfig) -> Evaluation | None:
    """Train, reconstruct, evaluate; everything that is made lies in ``out``.

    Args:
        out: output folder, created if absent; a demo that was stopped there goes on.
        data: folder of HDR images; None: generated scenes.
        config: of the training.

    Returns:
        The evaluation on scenes that were not trained on; None if Ctrl-C stopped the training.

    Raises:
        FileNotFoundError: there is no such folder of data.
        ValueError: it holds no images, fewer than two scenes, or images that cannot be used.
    """
    run = out / "run"
    resume = find_resume(run, "auto")
    pairs, validation = training_data(config, data, None)
    stop = StopRequest()
    with stop.listening():
        model = train(config, pairs, validation, run, resume=resume, stop=stop)
    if stop.requested:
        return None
    shutil.copyfile(run / "metrics.png", out / "training.png")

    unseen = held_out_pairs(data)
    photo = out / "photo.jpg"
    write_atomically(photo, lambda path: path.write_bytes(unseen[0].jpeg))
    entry = plan_reconstructions([photo], out / "photo.exr", overwrite=True)[0]
    reconstruct_file(model, entry)
    draw(model, unseen, out)
    evaluation = evaluate(unseen, {"DKPN": model.infer})
    evaluation.write_csv(out / "per_image.csv")
    table = evaluation.table() + "\n"
    write_atomically(out / "table.md", lambda path: path.write_text(table, encoding="utf-8"))
    return evaluation


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dkpn.demo",
        description="Train a small DKPN, reconstruct a photo it has not seen, and judge it.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="HDR images (.hdr, .exr); default: generated"
    )
    parser.add_argument(
        "--minutes", type=float, default=4.0, help="of training, without validation (default: 4)"
    )
    options = parser.parse_args(arguments)
    config = demo_config(options.minutes)
    leave_cores_to(config.train.workers)
    try:
        evaluation = run_demo(options.out, options.data, config)
    except (OSError, ValueError) as error:
        print(f"dkpn.demo: {error}", file=sys.stderr)
        return 2
    if evaluation is None:
        print("stopped; the same command goes on from here")
        return 1
    print(evaluation.table())
    gain = evaluation.mean("DKPN", "gain") - evaluation.mean(LDR, "gain")
    print(f"\n{gain:+.2f} dB over the input in the gain column. Look at {options.out}:")
    for path in sorted(path for path in options.out.iterdir() if path.is_file()):
        print(f"  {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
