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
"""Folders given to ComfyUI by `--extra-model-paths-config`."""

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

DENIED_NODES: Final[tuple[tuple[str, str], ...]] = (
    ("*[Pp]ython*", "runs code"),
    ("*[Ee]val *", "runs code"),
    ("*[Ee]val", "runs code"),
    ("*[Ee]xec[A-Z_ ]*", "runs code"),
    ("*[Ss]hell*", "runs code"),
    ("*RunCommand*", "runs code"),
    ("LoadImageSetFromFolderNode", "reads whole folders"),
    ("LoadImageTextSetFromFolderNode", "reads whole folders"),
    ("VHS_Load*Path", "reads arbitrary files"),
    ("VHS_LoadAudio", "reads arbitrary files"),
    ("*From[Pp]ath*", "reads arbitrary files"),
    ("*[Ff]rom[Dd]ir*", "reads arbitrary files"),
    ("Load Image Batch", "reads arbitrary files"),
    ("Load Text File", "reads arbitrary files"),
    ("Load Batch Images", "reads arbitrary files"),
    ("Save Text File", "writes arbitrary files"),
    ("*From[Uu][Rr][Ll]*", "calls out"),
    ("*[Ww]ebhook*", "calls out"),
    ("*HTTP*", "calls out"),
    ("*OpenAI*", "calls out"),
    ("*DownloadAndLoad*", "calls out"),
    ("TrainLoraNode", "trains; use a train job"),
)
"""`fnmatch` patterns of node classes refused unless allowed by name, and why. Comfy's own
API nodes are refused by their `api_node` mark."""

PATH_INPUT_HINTS: Final = ("path", "dir", "folder", "file")
"""Inputs whose names contain one of these must not leave ComfyUI's directories."""

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
