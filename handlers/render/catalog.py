"""What is known of ComfyUI's nodes, as data.

Read from ComfyUI 0.3.64 (nodes.py, comfy_extras/) and its recorded `/object_info`.
"""

from __future__ import annotations

from typing import Final

MODEL_INPUTS: Final[dict[str, dict[str, str]]] = {
    "CheckpointLoader": {"ckpt_name": "checkpoints"},
    "CheckpointLoaderSimple": {"ckpt_name": "checkpoints"},
    "ImageOnlyCheckpointLoader": {"ckpt_name": "checkpoints"},
    "unCLIPCheckpointLoader": {"ckpt_name": "checkpoints"},
    "CreateHookModelAsLora": {"ckpt_name": "checkpoints"},
    "CreateHookModelAsLoraModelOnly": {"ckpt_name": "checkpoints"},
    "DiffusersLoader": {"model_path": "diffusers"},
    "LoraLoader": {"lora_name": "loras"},
    "LoraLoaderModelOnly": {"lora_name": "loras"},
    "LoraModelLoader": {"lora_name": "loras"},
    "CreateHookLora": {"lora_name": "loras"},
    "CreateHookLoraModelOnly": {"lora_name": "loras"},
    "VAELoader": {"vae_name": "vae"},
    "UNETLoader": {"unet_name": "diffusion_models"},
    "UnetLoaderGGUF": {"unet_name": "diffusion_models"},
    "CLIPLoader": {"clip_name": "text_encoders"},
    "CLIPLoaderGGUF": {"clip_name": "text_encoders"},
    "DualCLIPLoader": {"clip_name1": "text_encoders", "clip_name2": "text_encoders"},
    "DualCLIPLoaderGGUF": {"clip_name1": "text_encoders", "clip_name2": "text_encoders"},
    "TripleCLIPLoader": {f"clip_name{n}": "text_encoders" for n in (1, 2, 3)},
    "QuadrupleCLIPLoader": {f"clip_name{n}": "text_encoders" for n in (1, 2, 3, 4)},
    "CLIPVisionLoader": {"clip_name": "clip_vision"},
    "ControlNetLoader": {"control_net_name": "controlnet"},
    "DiffControlNetLoader": {"control_net_name": "controlnet"},
    "StyleModelLoader": {"style_model_name": "style_models"},
    "GLIGENLoader": {"gligen_name": "gligen"},
    "HypernetworkLoader": {"hypernetwork_name": "hypernetworks"},
    "UpscaleModelLoader": {"model_name": "upscale_models"},
    "PhotoMakerLoader": {"photomaker_model_name": "photomaker"},
    "ModelPatchLoader": {"name": "model_patches"},
    "AudioEncoderLoader": {"audio_encoder_name": "audio_encoders"},
    # Those of the custom nodes that our image has (infra/images.toml). rgthree's Power Lora Loader takes
    # any number of them, under names of its own: `graph.named_models`.
    "Lora Loader Stack (rgthree)": {f"lora_0{n}": "loras" for n in (1, 2, 3, 4)},
    "CheckpointLoaderKJ": {"ckpt_name": "checkpoints"},
    "DiffusionModelLoaderKJ": {"model_name": "diffusion_models"},
    "DiffusionModelSelector": {"model_name": "diffusion_models"},
    "GGUFLoaderKJ": {"model_name": "diffusion_models", "extra_model_name": "diffusion_models"},
    "VAELoaderKJ": {"vae_name": "vae"},
    "DiTBlockLoraLoader": {"lora_name": "loras"},
    "LoraReduceRankKJ": {"lora_name": "loras"},
    "Checkpoint Loader": {"ckpt_name": "checkpoints"},
    "Checkpoint Loader (Simple)": {"ckpt_name": "checkpoints"},
    "unCLIP Checkpoint Loader": {"ckpt_name": "checkpoints"},
    "Lora Loader": {"lora_name": "loras"},
    "Load Lora": {"lora_name": "loras"},
    "Upscale Model Loader": {"model_name": "upscale_models"},
}
"""Loader class → input → the folder under `comfy_models/` that its file is in."""

FOLDER_ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "text_encoders": ("text_encoders", "clip"),
    "diffusion_models": ("diffusion_models", "unet"),
    "controlnet": ("controlnet", "t2i_adapter"),
}
"""Folders that ComfyUI treats as one (folder_paths.py)."""

MODEL_FOLDERS: Final = (
    *("checkpoints", "clip", "clip_vision", "configs", "controlnet", "diffusers", "diffusion_models"),
    *("embeddings", "gligen", "hypernetworks", "loras", "photomaker", "style_models", "text_encoders"),
    *("unet", "upscale_models", "vae", "vae_approx", "audio_encoders", "model_patches", "t2i_adapter"),
)
"""Folders given to ComfyUI by `--extra-model-paths-config`, beside those of custom nodes that lie there."""

NESTED_FOLDERS: Final = {"ultralytics_bbox": "ultralytics/bbox", "ultralytics_segm": "ultralytics/segm"}
"""Folders that custom nodes (ComfyUI-Impact-Subpack) know by another name than their path."""

NO_MODEL_FOLDERS: Final = frozenset({"custom_nodes", "base_path", "is_default"})
"""What would be code to ComfyUI, or mean something else in the file that tells it of folders."""

NOT_MODELS: Final = frozenset(
    {"taesd", "taesdxl", "taesd3", "taef1", "pixel_space", "none", "None", "[None]", ""}
)
"""Values of model inputs that name no file."""

FILE_INPUTS: Final[dict[str, tuple[str, ...]]] = {
    "LoadImage": ("image",),
    "LoadImageMask": ("image",),
    "LoadImageOutput": ("image",),
    "LoadLatent": ("latent",),
    "LoadVideo": ("file",),
    "LoadAudio": ("audio",),
    "Load3D": ("model_file",),
    "Load3DAnimation": ("model_file",),
    "WebcamCapture": ("image",),
    "VHS_LoadVideo": ("video",),
    "VHS_LoadVideoFFmpeg": ("video",),
    "VHS_LoadAudioUpload": ("audio",),
}
"""Node class → inputs that name a file in ComfyUI's input directory."""

UPLOAD_FLAGS: Final = ("image_upload", "video_upload", "audio_upload", "file_upload", "upload")
"""Marks of a file input in `/object_info`."""

_RUNS_CODE: Final = (
    *("*python*", "*javascript*", "*shell*", "*bash*", "*subprocess*", "*runcommand*", "*run command*"),
    *("*eval", "*eval *", "*evaluate*", "*exec", "*exec *", "*exec_*", "*execcode*", "*code exec*"),
    *("*anynode*", "*idenode*", "*scriptnode*", "*pickle*"),
)
_READS_FILES: Final = (
    *("*frompath*", "*from path*", "*from_path*", "*(path)*", "vhs_load*path", "vhs_loadaudio"),
    *("*fromdir*", "*from dir*", "*from_dir*", "*fromfolder*", "*from folder*", "*from_folder*"),
    *("*fromfile*", "*from file*", "*from_file*", "*localfile*", "*local file*", "*readfile*", "*read file*"),
    *("*loadtext*", "*load text*", "*load_text*", "*readtext*", "*read text*", "*listdir*", "*list files*"),
    *("load image batch", "load batch images", "batch load images", "loadimage*setfromfoldernode"),
)
_WRITES_FILES: Final = (
    *(
        "*savetext*",
        "*save text*",
        "*save_text*",
        "*writefile*",
        "*write file*",
        "*writetext*",
        "*write text*",
    ),
    *("image save", "*deletefile*", "*delete file*"),
)
_CALLS_OUT: Final = (
    *(
        "*url*",
        "*http*",
        "*webhook*",
        "*request*",
        "*download*",
        "*upload to*",
        "*ftp*",
        "*images3",
        "*s3image*",
    ),
    *("*openai*", "*chatgpt*", "*anthropic*", "*claude*", "*gemini*", "*deepseek*", "*groq*", "*ollama*"),
    *("*discord*", "*telegram*", "*slack*", "*email*", "*e-mail*", "*smtp*"),
)
DENIED_NODES: Final[tuple[tuple[str, str], ...]] = (
    *((pattern, "runs code") for pattern in _RUNS_CODE),
    *((pattern, "reads arbitrary files") for pattern in _READS_FILES),
    *((pattern, "writes arbitrary files") for pattern in _WRITES_FILES),
    *((pattern, "calls out") for pattern in _CALLS_OUT),
    ("trainloranode", "trains; use a train job"),
)
"""`fnmatch` patterns of caseless node classes refused unless allowed by name, and why. Names
are all that is known of custom nodes, so this errs towards refusing. Comfy's own API nodes
are refused by their `api_node` mark."""

PATH_INPUT_HINTS: Final = ("path", "dir", "folder", "file")
"""Inputs whose names contain one of these must not lead out of ComfyUI's directories."""

FILE_LIKE_HINTS: Final = ("image", "video", "audio", "mask", "model", "ckpt", "lora", "name")
"""Likewise, where they hold a text and no link: then it is a file's name."""

URL_INPUT_HINTS: Final = ("url", "uri", "endpoint", "host", "server", "webhook", "proxy")
"""Inputs whose names contain one of these must not hold an address."""

SEED_INPUTS: Final = ("seed", "noise_seed")

TEXT_INPUTS: Final = (
    "text",
    "prompt",
    "text_g",
    "text_l",
    "t5xxl",
    "clip_l",
    "clip_g",
    "llama",
    "tags",
    "value",
    "string",
)
"""Inputs that hold a prompt on text encoders and string nodes, in order of preference."""

MEDIA_TYPES: Final[dict[str, str]] = {
    **dict.fromkeys((".jpg", ".jpeg"), "image/jpeg"),
    ".png": "image/png",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".svg": "image/svg+xml",
    ".avif": "image/avif",
    ".tiff": "image/tiff",
    ".exr": "image/x-exr",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".wav": "audio/wav",
    ".opus": "audio/opus",
    ".ogg": "audio/ogg",
    ".m4a": "audio/mp4",
    ".glb": "model/gltf-binary",
    ".gltf": "model/gltf+json",
    ".obj": "model/obj",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}
"""By extension; `.latent`, `.safetensors` and all others are octet streams."""
