"""The whole way in a few minutes on a CPU: a photo to HDR, then a short fine-tuning, judged.

``python -m dkpn.demo --out demo [--data DIR] [--minutes 1]`` leaves in the output folder, within
seconds and made with the weights of the package:

=======================  =================================================================
``photo.jpg``             a photo of a scene that was not trained on
``photo_hdr.jpg``         its reconstruction as UltraHDR: the photo, with its range
``photo_hdr.exr``         the same, linear, 1.0 = clip level = 203 cd/m²
``look.html``             a page to look at it with
=======================  =================================================================

and after the fine-tuning, on other scenes than those that judge:

=======================  =================================================================
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
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from einops import rearrange

from dkpn.config import DKPNConfig, TrainConfig
from dkpn.data import (
    EvaluationPair,
    evaluation_pairs,
    find_images,
    make_evaluation_pair,
    split_by_scene,
)
from dkpn.evaluate import Evaluation, evaluate
from dkpn.hdr_io import write_atomically
from dkpn.infer import encoded_batch
from dkpn.model import DKPN
from dkpn.monitor import COMPARISON_TITLES, comparison, darker, write_pictures
from dkpn.outputs import write_result
from dkpn.photos import read_photo
from dkpn.pretrained import load
from dkpn.reconstruct import Options, reconstruct_photo
from dkpn.run_config import RunConfig
from dkpn.run_folder import find_resume
from dkpn.scenes import generate_scenes
from dkpn.schedule import StopRequest
from dkpn.train import train
from dkpn.training_data import GENERATED_SIDE, spread, training_data
from dkpn.training_pairs import DataConfig
from dkpn.viewer import View, look_inside, write_page

HELD_OUT = 12  # scenes that judge the result
SHOWN = 4


def demo_config(minutes: float, model: DKPNConfig) -> RunConfig:
    """A fine-tuning that a laptop's CPU gets somewhere with in a minute."""
    return RunConfig(
        model=model,
        data=DataConfig(crop_size=128),
        train=TrainConfig(
            iterations=3000,
            minutes=minutes,
            batch_size=4,
            learning_rate=3e-4,
            ema_decay=0.98,
            validate_every=1000,
            validation_images=4,
            checkpoint_every=1000,
            keep_checkpoints=1,
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


def show_photo(model: DKPN, pair: EvaluationPair, out: Path) -> list[Path]:
    """Reconstruct one photo as files to open; returns them."""
    photo = out / "photo.jpg"
    write_atomically(photo, lambda path: path.write_bytes(pair.jpeg))
    picture = read_photo(photo)
    result = reconstruct_photo(model, picture, Options())
    results = [out / f"photo_hdr{suffix}" for suffix in (".jpg", ".exr")]
    for path in results:
        write_result(path, result, photo=picture)
    page = out / "look.html"
    write_page(page, [View("photo", result, picture.pixels, look_inside(model, picture.pixels))])
    return [photo, *results, page]


def fine_tune(out: Path, data: Path | None, config: RunConfig, start: DKPN) -> DKPN | None:
    """Go on from the shipped weights on a folder of HDR images, or on generated scenes.

    Args:
        out: output folder; a demo that was stopped there goes on.
        data: folder of HDR images; None: generated scenes.
        config: of the training.
        start: the network to start from.

    Returns:
        The fine-tuned network; None if a signal stopped the training.

    Raises:
        FileNotFoundError: there is no such folder of data.
        ValueError: it holds no images, fewer than two scenes, or images that cannot be used.
    """
    run = out / "run"
    resume = find_resume(run, "auto")
    pairs, validation = training_data(config, data, None)
    stop = StopRequest()
    with stop.listening():
        model = train(config, pairs, validation, run, start=start, resume=resume, stop=stop)
    if stop.number:
        return None
    shutil.copyfile(run / "metrics.png", out / "training.png")
    return model


def judge(networks: Mapping[str, DKPN], unseen: Sequence[EvaluationPair], out: Path) -> Evaluation:
    """Evaluate networks on scenes that none was trained on, and draw what the last one made."""
    *_, last = networks.values()
    draw(last, unseen, out)
    evaluation = evaluate(unseen, {name: network.infer for name, network in networks.items()})
    evaluation.write_csv(out / "per_image.csv")
    table = evaluation.table() + "\n"
    write_atomically(out / "table.md", lambda path: path.write_text(table, encoding="utf-8"))
    return evaluation


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dkpn.demo",
        description="Reconstruct a photo with the shipped weights, fine-tune them, judge both.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="HDR images (.hdr, .exr); default: generated"
    )
    parser.add_argument(
        "--minutes", type=float, default=1.0, help="of fine-tuning, without validation (default: 1)"
    )
    options = parser.parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        unseen = held_out_pairs(options.data)
        model = load(device="cpu")
        print("With the weights of the package:")
        for path in show_photo(model, unseen[0], options.out):
            print(f"  {path}")
        print(f"Fine-tuning for {options.minutes:g} minutes:", flush=True)
        config = demo_config(options.minutes, model.config)
        tuned = fine_tune(options.out, options.data, config, model)
        if tuned is None:
            print("stopped; the same command goes on from here")
            return 1
        evaluation = judge({"DKPN": model, "fine-tuned": tuned}, unseen, options.out)
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"dkpn.demo: {error}", file=sys.stderr)
        return 2
    print(evaluation.table())
    print(f"\nLook at {options.out}:")
    for path in sorted(path for path in options.out.iterdir() if path.is_file()):
        print(f"  {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
