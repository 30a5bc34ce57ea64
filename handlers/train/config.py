"""The trainer's config: from a preset's settings, or a user's own brought under the same rules.

Every key is known and typed here, because the trainer's own reading is generous: it
expands `${…}` from its environment, takes any path, and runs code that a model repository
brings along. Paths are not part of a config until a run puts in its own.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any, Final

from handlers.train.options import TrainOptions
from handlers.train.presets import BaseModel, Preset, load_preset, preset_files
from handlers.train.prompts import check_prompt
from processor.errors import ErrorKind, JobInvalid
from processor.models import Scalar
from processor.problems import did_you_mean

Process = dict[str, Any]
"""One entry of ai-toolkit's `config.process`."""

_FLAG_ARCHS: Final = {
    "is_v2": "sd2",
    "is_v3": "sd3",
    "is_xl": "sdxl",
    "is_pixart": "pixart",
    "is_pixart_sigma": "pixart_sigma",
    "is_auraflow": "auraflow",
    "is_flux": "flux",
    "is_lumina2": "lumina2",
    "is_vega": "vega",
    "is_ssd": "ssd",
}
"""How configs said it before `arch`, in the trainer's own order (toolkit/config_modules.py)."""

_INT: Final = (int,)
_NUMBER: Final = (int, float)
_WORD: Final = (str,)
_FLAG: Final = (bool,)

_ALLOWED: Final[dict[str, Any]] = {
    "type": _WORD,
    "trigger_word": _WORD,
    "network": {
        "type": _WORD,
        "linear": _INT,
        "linear_alpha": _NUMBER,
        "conv": _INT,
        "conv_alpha": _NUMBER,
        "dropout": _NUMBER,
    },
    "save": {"dtype": _WORD, "save_every": _INT, "max_step_saves_to_keep": _INT},
    "datasets": {
        "caption_ext": _WORD,
        "caption_dropout_rate": _NUMBER,
        "shuffle_tokens": _FLAG,
        "cache_latents": _FLAG,
        "cache_latents_to_disk": _FLAG,
        "num_repeats": _INT,
        "num_frames": _INT,
        "num_workers": _INT,
        "resolution": _INT,
        "default_caption": _WORD,
        "flip_x": _FLAG,
        "flip_y": _FLAG,
        "keep_tokens": _INT,
    },
    "train": {
        "batch_size": _INT,
        "steps": _INT,
        "lr": _NUMBER,
        "optimizer": _WORD,
        "optimizer_params": {"weight_decay": _NUMBER, "d_coef": _NUMBER, "eps": _NUMBER},
        "lr_scheduler": _WORD,
        "dtype": _WORD,
        "noise_scheduler": _WORD,
        "timestep_type": _WORD,
        "content_or_style": _WORD,
        "gradient_accumulation": _INT,
        "gradient_accumulation_steps": _INT,
        "gradient_checkpointing": _FLAG,
        "train_unet": _FLAG,
        "train_text_encoder": _FLAG,
        "unload_text_encoder": _FLAG,
        "cache_text_embeddings": _FLAG,
        "disable_sampling": _FLAG,
        "skip_first_sample": _FLAG,
        "max_grad_norm": _NUMBER,
        "min_snr_gamma": _NUMBER,
        "noise_offset": _NUMBER,
        "linear_timesteps": _FLAG,
        "bypass_guidance_embedding": _FLAG,
        "ema_config": {"use_ema": _FLAG, "ema_decay": _NUMBER},
    },
    "model": {
        "arch": _WORD,
        "quantize": _FLAG,
        "quantize_te": _FLAG,
        "qtype": _WORD,
        "qtype_te": _WORD,
        "low_vram": _FLAG,
        **dict.fromkeys(_FLAG_ARCHS, _FLAG),
    },
    "sample": {
        "sampler": _WORD,
        "sample_every": _INT,
        "sample_start_step": _INT,
        "width": _INT,
        "height": _INT,
        "num_frames": _INT,
        "fps": _INT,
        "prompts": _WORD,
        "neg": _WORD,
        "seed": _INT,
        "walk_seed": _FLAG,
        "guidance_scale": _NUMBER,
        "sample_steps": _INT,
    },
    "logging": {"log_every": _INT},
}
"""Key → types of its value, or of a list's items."""

_LISTS: Final = frozenset({"datasets.resolution", "sample.prompts"})
"""What may be a list; elsewhere the trainer would fail on one, or take it for something else."""

_OURS: Final = frozenset(
    {
        "device",
        "training_folder",
        "performance_log_every",
        "datasets.folder_path",
        "model.name_or_path",
        "save.push_to_hub",
        "save.hf_repo_id",
        "save.hf_private",
        "logging.use_ui_logger",
    }
)
"""What examples carry and a run decides itself: taken out, whatever it says."""

_FREE_TEXT: Final = frozenset({"trigger_word", "sample.prompts", "sample.neg", "datasets.default_caption"})
_WORDS: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+|-]{0,99}")
_MAX_TEXT: Final = 2_000
_MAX_LIST: Final = 64
_MAX_STEPS: Final = 200_000

_COUNTS: Final = (
    ("train", "steps", None, _MAX_STEPS),
    ("save", "save_every", 250, _MAX_STEPS),
    ("save", "max_step_saves_to_keep", 4, 100),
)
"""Section, key, default and bound of what a run can't do without; one bound for presets and full configs."""

_PATHS: Final[dict[str, tuple[str, ...]]] = {
    "steps": ("train", "steps"),
    "lr": ("train", "lr"),
    "optimizer": ("train", "optimizer"),
    "batch_size": ("train", "batch_size"),
    "rank": ("network", "linear"),
    "alpha": ("network", "linear_alpha"),
    "save_every": ("save", "save_every"),
}
"""Settings that change a full config as they change a preset."""


def preset_process(preset: Preset, options: TrainOptions, *, trigger: str) -> Process:
    """The config of a preset with a job's settings."""
    if not options.sample_prompts:
        prompts = [prompt.replace("{trigger}", trigger) for prompt in preset.prompts]
        options = options.model_copy(update={"sample_prompts": prompts})
    process = options.as_process()
    process["model"] |= preset.model
    process["train"] |= preset.train
    if "sample" in process:
        process["sample"] |= preset.sample
    return _finished(process, trigger)


def raw_process(config: Mapping[str, Any], changes: Mapping[str, Scalar], *, trigger: str) -> Process:
    """A full ai-toolkit config, reduced to what is allowed, with a job's settings put in.

    Raises:
        JobInvalid: an unknown key, a wrong type, `${…}`, or a text that could be a path.
    """
    process = copy.deepcopy(dict(_only_process(config)))
    clean = _allowed(process, _ALLOWED, "")
    if clean.get("type", "sd_trainer") != "sd_trainer":
        raise JobInvalid(f"{clean['type']!r}: only sd_trainer is run", where="config.process.type")
    if clean.get("network", {}).get("type", "lora") != "lora":
        raise JobInvalid("only networks of type lora are trained", where="config.process.network.type")
    for name, value in changes.items():
        path = _PATHS.get(name)
        if path is None:
            raise JobInvalid(
                f"{name!r} can't change a full config", where="settings", mend=did_you_mean(name, _PATHS)
            )
        section = clean
        for key in path[:-1]:
            section = section.setdefault(key, {})
        section[path[-1]] = value
    clean = _allowed(clean, _ALLOWED, "")
    for section, key, default, most in _COUNTS:
        value = clean.setdefault(section, {}).setdefault(key, default)
        if not isinstance(value, int) or not 0 < value <= most:
            raise JobInvalid(f"1 to {most:,}", where=f"config.process.{section}.{key}")
    if isinstance(prompts := clean.get("sample", {}).get("prompts"), str):
        clean["sample"]["prompts"] = [prompts]  # else the trainer would sample each of its letters
    _name_arch(clean.setdefault("model", {}), _only_process(config).get("model", {}))
    clean["type"] = "sd_trainer"
    clean["save"].update({"push_to_hub": False})
    clean.setdefault("network", {}).setdefault("type", "lora")
    datasets = clean.get("datasets") or [{}]
    clean["datasets"] = datasets if isinstance(datasets, list) else [datasets]
    if len(clean["datasets"]) > 1:
        raise JobInvalid(
            f"{len(clean['datasets'])} datasets: a job trains on one, the one that it names",
            where="config.process.datasets",
            mend="Give one entry; its resolution may be a list",
        )
    return _finished(clean, trigger)


def raw_base(config: Mapping[str, Any]) -> BaseModel:
    """The base model that a full config names: a preset's, or a folder under `models/`.

    Raises:
        JobInvalid: a path, or a repository that no preset knows.
    """
    model = _only_process(config).get("model", {})
    if not isinstance(model, Mapping):
        raise JobInvalid(f"an object is wanted, not {model!r:.60}", where="config.process.model")
    name, where = model.get("name_or_path"), "config.process.model.name_or_path"
    if not isinstance(name, str) or not name:
        raise JobInvalid("a full config names its base model", where=where)
    preset = _preset_of(name)
    return preset.base if preset else own_base(name, where=where)


def _preset_of(name: object) -> Preset | None:
    """The preset whose base model is called so, as a repository or as a folder."""
    presets = (load_preset(preset_name) for preset_name in preset_files())
    return next((preset for preset in presets if name in (preset.base.repo, preset.base.name)), None)


def _name_arch(model: dict[str, Any], said: Mapping[str, Any]) -> None:
    """Have the architecture said as `arch`: without one the trainer takes SD 1.5, whatever the base is.

    Args:
        said: the config's own section, which names the base.
    """
    archs = [arch for flag, arch in _FLAG_ARCHS.items() if model.pop(flag, False)]
    if (preset := _preset_of(said.get("name_or_path"))) is not None:
        archs.append(preset.model["arch"])
    if archs:
        model.setdefault("arch", archs[0])


def own_base(name: str, *, where: str) -> BaseModel:
    """A base model of the bucket's own, by the name of its folder under `models/`."""
    if _WORDS.fullmatch(name) is None or ".." in name:
        raise JobInvalid(
            f"{name!r} is neither a preset's model nor the name of a folder under models/",
            where=where,
            mend="Upload it to models/<name>/ in diffusers format and give that name",
            kind=ErrorKind.REFUSED,
        )
    return BaseModel(name=name)


def raw_trigger(config: Mapping[str, Any]) -> str | None:
    """The trigger word that a full config has."""
    word = _only_process(config).get("trigger_word")
    return word if isinstance(word, str) and word else None


def _only_process(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one process in a config, however much of the file around it is there."""
    inner = config.get("config", config)
    processes = inner.get("process") if isinstance(inner, Mapping) else None
    if processes is None and "train" in config:
        processes = [config]
    if not isinstance(processes, list) or len(processes) != 1 or not isinstance(processes[0], Mapping):
        raise JobInvalid("a full config has exactly one process", where="config.process")
    return processes[0]


def _allowed(value: Any, rule: Any, path: str) -> Any:
    where = f"config.process.{path}" if path else "config.process"
    if isinstance(rule, dict):
        if isinstance(value, list) and path == "datasets":
            if any(isinstance(item, list) for item in value):
                raise JobInvalid("a list of objects is wanted, not of lists", where=where)
            return [_allowed(item, rule, path) for item in value[:_MAX_LIST]]
        if not isinstance(value, dict):
            raise JobInvalid(f"an object is wanted, not {value!r:.60}", where=where)
        return {
            key: _allowed(item, _rule_of(key, rule, path), f"{path}.{key}" if path else key)
            for key, item in value.items()
            if (f"{path}.{key}" if path else key) not in _OURS
        }
    if isinstance(value, list):
        if path not in _LISTS:
            raise JobInvalid(f"one value is wanted, not a list: {value!r:.60}", where=where)
        if len(value) > _MAX_LIST:
            raise JobInvalid(f"a list of at most {_MAX_LIST}", where=where)
        return [_checked(item, rule, path, where) for item in value]
    return _checked(value, rule, path, where)


def _rule_of(key: object, rules: dict[str, Any], path: str) -> Any:
    if key in rules and isinstance(key, str):
        return rules[key]
    raise JobInvalid(
        f"{key!r} is not allowed here",
        where=f"config.process.{path}" if path else "config.process",
        mend=did_you_mean(str(key), rules),
        kind=ErrorKind.REFUSED,
    )


def _checked(value: Any, types: tuple[type, ...], path: str, where: str) -> Any:
    if isinstance(value, bool) != (types == _FLAG) or not isinstance(value, types):
        raise JobInvalid(
            f"{' or '.join(kind.__name__ for kind in types)} is wanted, not {value!r:.60}", where=where
        )
    if isinstance(value, str):
        check_text(value, where=where)
        if path not in _FREE_TEXT and _WORDS.fullmatch(value) is None:
            raise JobInvalid(f"{value!r:.60} is no plain word", where=where, kind=ErrorKind.REFUSED)
    return value


def check_text(value: str, *, where: str) -> str:
    """A user's text that goes into a config: bounded, with nothing the trainer expands, and no path."""
    if "${" in value or "--ctrl_img" in value or "\0" in value or len(value) > _MAX_TEXT:
        raise JobInvalid(
            f"at most {_MAX_TEXT} characters, without ${{…}} and --ctrl_img",
            where=where,
            kind=ErrorKind.REFUSED,
        )
    return value


def _check_train(train: Mapping[str, Any]) -> None:
    """What the trainer would refuse once the model is loaded, on a rented GPU."""
    if train.get("train_text_encoder"):
        for key in ("cache_text_embeddings", "unload_text_encoder"):
            if train.get(key):
                raise JobInvalid(
                    f"the text encoder can't be trained where {key} is true",
                    where="train_text_encoder",
                    mend="Leave it out: this base model is trained without its text encoder",
                )
    if train.get("optimizer") == "lion":
        raise JobInvalid("the trainer lacks the package of lion", where="optimizer", mend="Use lion8bit")


def _finished(process: Process, trigger: str) -> Process:
    """With what every run has: the trigger word, and it as the caption of what has none."""
    check_text(trigger, where="trigger_word")
    for prompt in process.get("sample", {}).get("prompts", []):
        check_text(prompt, where="sample_prompts")
        check_prompt(prompt, trigger, where="sample_prompts")
    _check_train(process["train"])
    if "sample" in process:
        process["sample"].setdefault("neg", "")
    process["trigger_word"] = trigger
    for dataset in process["datasets"]:
        dataset["default_caption"] = trigger
        dataset["caption_ext"] = "txt"
        dataset.setdefault("num_workers", 0)
    process["logging"] = {"log_every": 1, "use_ui_logger": False}
    return process
