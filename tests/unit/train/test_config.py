"""Presets and full configs: typed, bounded, without a path or a `${…}` of a user's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ruamel.yaml import YAML

from handlers.train.config import own_base, preset_process, raw_base, raw_process, raw_trigger
from handlers.train.config_file import to_yaml
from handlers.train.options import read_options
from handlers.train.presets import load_preset, preset_files
from processor.errors import JobInvalid

RAW: dict[str, Any] = {
    "job": "extension",
    "config": {
        "name": "mine",
        "process": [
            {
                "type": "sd_trainer",
                "training_folder": "/somewhere",
                "device": "cuda:0",
                "trigger_word": "zoe",
                "network": {"type": "lora", "linear": 8, "linear_alpha": 8},
                "save": {"dtype": "float16", "save_every": 100, "push_to_hub": True},
                "datasets": [{"folder_path": "/etc", "resolution": [512, 768], "caption_ext": "txt"}],
                "train": {"steps": 500, "lr": 1e-4, "optimizer": "adamw8bit", "dtype": "bf16"},
                "model": {"name_or_path": "black-forest-labs/FLUX.1-dev", "is_flux": True, "quantize": True},
                "sample": {"sample_every": 100, "prompts": ["zoe / at the beach"]},
            }
        ],
    },
    "meta": {"name": "[name]"},
}


def changed(path: str, value: object) -> dict[str, Any]:
    """The full config with one value replaced, by its path in the process."""
    config = copy.deepcopy(RAW)
    section = config["config"]["process"][0]
    *parents, last = path.split(".")
    for parent in parents:
        section = section[parent][0] if parent == "datasets" else section[parent]
    section[last] = value
    return config


@pytest.mark.parametrize("name", sorted(preset_files()))
def test_every_preset_makes_a_config_of_allowed_keys(name: str) -> None:
    """A preset is held to the same rules as a user's own config."""
    preset = load_preset(name)
    options = read_options(preset.settings, {}, where=name)
    process = preset_process(preset, options, trigger="zoe")
    again = raw_process({"config": {"process": [process]}}, {}, trigger="zoe")
    assert again["train"] == process["train"]
    assert process["model"]["arch"]
    assert all("{trigger}" not in prompt for prompt in process["sample"]["prompts"])
    assert preset.memory_gb <= (80 if "80GB" in preset.gpu else 48)


@pytest.mark.parametrize("name", sorted(preset_files()))
def test_every_preset_trains_on_captions(name: str) -> None:
    """With `unload_text_encoder` the trainer knows the trigger word and nothing else."""
    preset = load_preset(name)
    assert not {**preset.settings, **preset.train}.get("unload_text_encoder")


def test_the_presets_are_the_promised_ones() -> None:
    """FLUX.1-dev, SDXL, SD 1.5, Wan 2.1 14B and Qwen-Image."""
    assert set(preset_files()) == {"flux1-dev", "sdxl", "sd15", "wan21-14b", "qwen-image"}
    assert [name for name in preset_files() if load_preset(name).video] == ["wan21-14b"]


def test_a_full_config_keeps_what_is_allowed_and_loses_every_path() -> None:
    """What a run decides itself is taken out, whatever it says."""
    process = raw_process(RAW, {"lr": 5e-5, "rank": 32}, trigger="zoe")
    assert process["train"]["lr"] == 5e-5
    assert process["network"]["linear"] == 32
    assert process["save"]["push_to_hub"] is False
    assert process["datasets"][0]["default_caption"] == "zoe"
    assert "/etc" not in str(process)
    assert "/somewhere" not in str(process)
    assert process["model"] == {"arch": "flux", "quantize": True}
    assert raw_base(RAW).name == "FLUX.1-dev"
    assert raw_trigger(RAW) == "zoe"


@pytest.mark.parametrize(
    ("path", "value", "names"),
    [
        ("train.stepz", 5, "steps"),
        ("train.steps", "5", "int"),
        ("train.steps", True, "int"),
        ("train.steps", 0, "steps"),
        ("train.steps", 10**9, "steps"),
        ("save.max_step_saves_to_keep", 0, "config.process.save.max_step_saves_to_keep: 1 to 100"),
        ("save.max_step_saves_to_keep", 101, "config.process.save.max_step_saves_to_keep: 1 to 100"),
        ("train.optimizer", "${HOME}", "optimizer"),
        ("train.optimizer", "/bin/sh", "plain word"),
        ("trigger_word", "${AWS_SECRET_ACCESS_KEY}", "${"),
        ("sample.prompts", ["fine", "not ${fine}"], "prompts"),
        ("sample.prompts", ["x"] * 100, "at most"),
        ("sample.prompts", ["zoe --w 512", "zoe --ctrl_img /etc/passwd"], "--ctrl_img"),
        ("sample.prompts", "zoe --ctrl_img /etc/passwd", "--ctrl_img"),
        ("trigger_word", "zoe --ctrl_img /etc/passwd", "--ctrl_img"),
        ("sample.prompts", ["zoe --\tctrl_img /etc/passwd"], "--ctrl_img opens a file"),
        ("sample.prompts", ["zoe --w abc"], "--w 'abc': a number is wanted"),
        ("sample.prompts", ["zoe --ev 1,x"], "--ev '1,x': a number is wanted"),
        ("train.optimizer", "lion", "Use lion8bit"),
        ("train.lr", [1e-4], "config.process.train.lr: one value is wanted, not a list"),
        ("train.dtype", ["bf16"], "one value is wanted"),
        ("train.batch_size", [1, 2], "one value is wanted"),
        ("datasets.num_frames", [41], "one value is wanted"),
        ("network.pretrained_lora_path", "/etc/passwd", "not allowed"),
        ("network.type", "locon", "lora"),
        ("model.qtype", "uint3|someone/else.safetensors", "plain word"),
        ("model.assistant_lora_path", "x", "not allowed"),
        ("datasets.mask_path", "/etc", "not allowed"),
        ("datasets", "everything", "object"),
        ("datasets", [{}, {"resolution": [512]}], "2 datasets: a job trains on one"),
        ("model.is_flux", "yes", "config.process.model.is_flux"),
        ("datasets", [[{}]], "config.process.datasets: a list of objects"),
        ("type", "custom_trainer", "sd_trainer"),
        ("extension_path", "/opt/x", "not allowed"),
    ],
)
def test_what_is_not_allowed_is_refused_by_its_path(path: str, value: object, names: str) -> None:
    """Unknown keys, wrong types, expansions, and texts that could be a path."""
    with pytest.raises(JobInvalid) as caught:
        raw_process(changed(path, value), {}, trigger="zoe")
    assert names in str(caught.value)


@pytest.mark.parametrize(
    ("model", "arch"),
    [
        ({"name_or_path": "mine", "is_flux": True}, "flux"),
        ({"name_or_path": "mine", "is_xl": True}, "sdxl"),
        ({"name_or_path": "mine", "is_v3": True, "is_xl": False}, "sd3"),
        ({"name_or_path": "mine", "arch": "chroma", "is_flux": True}, "chroma"),
        ({"name_or_path": "stabilityai/stable-diffusion-xl-base-1.0"}, "sdxl"),
        ({"name_or_path": "Qwen-Image", "is_flux": False}, "qwen_image"),
        ({"name_or_path": "mine"}, None),
    ],
)
def test_a_full_config_keeps_its_architecture(model: dict[str, Any], arch: str | None) -> None:
    """In the old way of saying it, too: without one the trainer takes SD 1.5."""
    process = raw_process(changed("model", model), {}, trigger="zoe")
    assert process["model"] == ({"arch": arch} if arch else {})


def test_a_full_config_without_a_model_is_fine_where_the_settings_name_a_base() -> None:
    """Its base is `settings.base_model`; nothing says another architecture than the trainer's own."""
    assert raw_process({"train": {"steps": 5}}, {}, trigger="zoe")["model"] == {}


def test_one_prompt_is_a_list_of_one() -> None:
    """The trainer would sample each of its letters."""
    process = raw_process(changed("sample.prompts", "zoe at the beach --w 512"), {}, trigger="zoe")
    assert process["sample"]["prompts"] == ["zoe at the beach --w 512"]


@pytest.mark.parametrize("text", ["zoe --ctrl_img /etc/passwd", "${HOME}"])
def test_a_presets_texts_open_and_expand_nothing_either(text: str) -> None:
    """Sample prompts and the trigger word, which is put into the preset's."""
    preset = load_preset("sd15")
    with pytest.raises(JobInvalid, match="sample_prompts"):
        preset_process(
            preset, read_options(preset.settings, {"sample_prompts": [text]}, where="x"), trigger="zoe"
        )
    with pytest.raises(JobInvalid, match="trigger_word"):
        preset_process(preset, read_options(preset.settings, {}, where="x"), trigger=text)


def test_a_trigger_word_makes_no_option_of_a_prompts_text() -> None:
    """The trainer puts it in before it reads the options."""
    with pytest.raises(JobInvalid, match="--ctrl_img opens a file"):
        raw_process(changed("sample.prompts", ["a --[trigger] /etc/passwd"]), {}, trigger="ctrl_img")


@pytest.mark.parametrize("name", ["qwen-image", "wan21-14b"])
def test_a_text_encoder_whose_output_is_cached_is_not_trained(name: str) -> None:
    """The trainer says so once the model is loaded, on a rented GPU."""
    preset = load_preset(name)
    options = read_options(preset.settings, {"train_text_encoder": True}, where="settings")
    with pytest.raises(JobInvalid, match="train_text_encoder: the text encoder"):
        preset_process(preset, options, trigger="zoe")


@pytest.mark.parametrize("word", ["on", "yes", "No", "16:9", "1:30", "0b11", "1_000", "=", "~", "2024-01-01"])
def test_a_word_stays_a_word_for_a_reader_of_yaml_1_1(word: str) -> None:
    """As the trainer is; numbers stay numbers."""
    process = raw_process(changed("sample.prompts", [word]), {}, trigger=word)
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 1)
    (read,) = yaml.load(to_yaml("mine", process).decode())["config"]["process"]
    assert (read["trigger_word"], read["sample"]["prompts"]) == (word, [word])
    assert read["datasets"][0]["default_caption"] == word
    assert read["train"]["steps"] == 500


@pytest.mark.parametrize("name", ["/models/x", "../x", "someone/else", "", "a b", "${HOME}"])
def test_a_base_model_is_a_presets_or_a_folder_in_the_bucket(name: str) -> None:
    """The trainer runs code that a repository brings: none that nobody vetted."""
    with pytest.raises(JobInvalid):
        raw_base(changed("model.name_or_path", name))
    with pytest.raises(JobInvalid):
        own_base(name, where="x")
    assert own_base("my-model.v2", where="x").repo is None


@pytest.mark.parametrize("model", ["FLUX", None, [], 7])
def test_a_model_section_that_is_none_is_named(model: object) -> None:
    """As everywhere else in a full config: by its path."""
    with pytest.raises(JobInvalid, match=r"config\.process\.model: an object is wanted"):
        raw_base(changed("model", model))


@pytest.mark.parametrize(
    "config", [{}, {"config": {}}, {"config": {"process": []}}, {"config": {"process": [1]}}]
)
def test_a_config_without_exactly_one_process_is_refused(config: dict[str, Any]) -> None:
    """ai-toolkit runs several; a job of ours is one run."""
    with pytest.raises(JobInvalid, match="exactly one process"):
        raw_process(config, {}, trigger="zoe")


def test_a_setting_that_a_full_config_has_no_place_for_is_named() -> None:
    """Only some settings have a place in every config."""
    with pytest.raises(JobInvalid, match="rank"):
        raw_process(RAW, {"rankk": 5}, trigger="zoe")
