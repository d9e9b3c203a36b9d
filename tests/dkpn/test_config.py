import dataclasses

import pytest

from dkpn.config import DKPNConfig, TrainConfig, config_differences, config_from_dict


def test_defaults_fit_the_network_into_five_million_parameters():
    from dkpn import DKPN

    assert sum(parameter.numel() for parameter in DKPN().parameters()) <= 5_000_000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kernel_size", 4),
        ("kernel_size", -1),
        ("head", "mixed"),
        ("taps", "none"),
        ("max_gain_stops", 0.0),
        ("mask_tau", 0.0),
        ("mask_tau", float("nan")),
        ("width", 0),
        ("unshuffle", 0),
        ("channel_multipliers", ()),
        ("encoder_blocks", (1, 1)),
        ("decoder_blocks", (1, 1, 1, 1)),
        ("curve_knots", (0.0, 0.5, 0.5, 1.0)),
        ("curve_knots", (0.1, 1.0)),
        ("max_black", 1e-4),
        ("dark_floor", 0.0),
    ],
)
def test_values_out_of_range_name_field_and_value(field, value):
    with pytest.raises(ValueError, match=field) as caught:
        dataclasses.replace(DKPNConfig(), **{field: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("head", ["per-image", "undecoupled"])
def test_softmax_taps_need_the_channel_gain(head):
    with pytest.raises(ValueError, match="taps"):
        DKPNConfig(head=head, taps="softmax")
    assert DKPNConfig(head=head, taps="exp").head == head


def test_a_config_survives_json():
    import json

    config = DKPNConfig(width=8, mask_squared=True, channel_multipliers=(1, 2, 2, 3))
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    assert config_from_dict(DKPNConfig, values, "test") == config


def test_integers_stand_for_floats_and_null_for_none():
    config = config_from_dict(TrainConfig, {"learning_rate": 1, "minutes": None}, "test")
    assert config.learning_rate == 1.0
    assert isinstance(config.learning_rate, float)
    assert config_from_dict(TrainConfig, {"minutes": 3}, "test").minutes == 3.0


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({"witdh": 8}, ValueError, "witdh.*known are.*width"),
        ({"width": "8"}, TypeError, "width.*int"),
        ({"width": True}, TypeError, "width.*int"),
        ({"mask_squared": 1}, TypeError, "mask_squared.*bool"),
        ({"head": 3}, TypeError, "head.*str"),
        ({"curve_knots": 3.0}, TypeError, "curve_knots.*list"),
        ({"channel_multipliers": [1, "2"]}, TypeError, "channel_multipliers.*int"),
        ({"width": 0}, ValueError, "run.toml.*width"),
        ([], TypeError, "table"),
    ],
)
def test_wrong_tables_say_where_and_what(values, error, text):
    with pytest.raises(error, match=text):
        config_from_dict(DKPNConfig, values, "run.toml [model]")


def test_differences_name_both_values():
    assert config_differences({"a": 1, "b": 2}, {"a": 1, "b": 2}) == []
    assert config_differences({"a": 1}, {"a": 2, "c": 3}) == ["a: 1 and 2", "c: 'absent' and 3"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("iterations", 0),
        ("batch_size", -1),
        ("ema_decay", 1.0),
        ("minutes", 0.0),
        ("accumulate", 0),
        ("curve_photos", -1),
        ("precision", "float16"),
        ("head", "both"),
    ],
)
def test_training_values_out_of_range_name_field_and_value(field, value):
    with pytest.raises(ValueError, match=f"{field}.*{value}"):
        dataclasses.replace(TrainConfig(), **{field: value})


def test_a_batch_that_has_no_equal_parts_is_refused():
    with pytest.raises(ValueError, match=r"batch_size.*accumulate = 3, got 8"):
        TrainConfig(batch_size=8, accumulate=3)
