import numpy as np
import pytest
import torch

from dkpn.camera import CURVE_FAMILIES, CameraConfig, develop, draw_camera, sample_camera
from dkpn.jpeg import jpeg_loss
from dkpn.photograph import photograph
from dkpn.scenes import generate_scenes


@pytest.mark.parametrize("family", range(len(CURVE_FAMILIES)))
def test_a_batch_is_photographed_as_each_image_alone(family):
    weights = tuple(float(index == family) for index in range(len(CURVE_FAMILIES)))
    config = CameraConfig(curve_weights=weights)
    images = generate_scenes(3, (24, 40), seed=5)
    scenes = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    draws = [draw_camera(config, np.random.default_rng(seed)) for seed in range(3)]
    photos, truths = photograph(scenes, draws)
    for index, image in enumerate(images):
        # The same random numbers in the same order: the same camera, exposed to its image.
        camera = sample_camera(image, config, np.random.default_rng(index))
        alone = jpeg_loss(develop(scenes[index], camera)[None], [camera.jpeg_quality])
        torch.testing.assert_close(truths[index], scenes[index] * camera.exposure)
        # The two round in another order, which moves a few values by a code before the JPEG.
        different = (photos[index] - alone[0]).abs() * 255
        assert (different > 0.5).float().mean() < 0.02
        assert different.mean() < 0.05


def test_truth_clips_where_the_draw_says():
    images = generate_scenes(2, 32, seed=1)
    scenes = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    config = CameraConfig(clip_above=(0.1, 0.1))
    draws = [draw_camera(config, np.random.default_rng(seed)) for seed in range(2)]
    photos, truths = photograph(scenes, draws)
    above = (truths.amax(1) > 1).float().mean((1, 2))
    assert torch.allclose(above, torch.tensor(0.1), atol=2 / 32**2)
    assert torch.equal((photos * 255).round() / 255, photos)


def test_a_scene_with_few_lights_is_exposed_for_the_brightest():
    scene = torch.zeros(1, 3, 16, 16)
    scene[..., 3, 5] = 7.0
    draw = draw_camera(CameraConfig(clip_above=(0.2, 0.2)), np.random.default_rng(0))
    _, truth = photograph(scene, [draw])
    assert truth.max() == 1.0
