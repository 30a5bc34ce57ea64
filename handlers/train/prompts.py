"""Sample prompts, whose options are read as the trainer reads them: before a GPU is rented."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from processor.errors import ErrorKind, JobInvalid

_NUMBERS: Final[dict[str, Callable[[str], object]]] = {
    **dict.fromkeys(("w", "h", "d", "seed", "s", "steps", "frames", "num_frames", "fps", "ctrl_idx"), int),
    **dict.fromkeys(("l", "cfg", "m", "network_multiplier", "gr", "a", "ref"), float),
    **dict.fromkeys(("ev", "extra_values"), lambda text: [float(number) for number in text.split(",")]),
}
"""Option → what it must be (toolkit/config_modules.py of ai-toolkit 0.12.26); others are passed over."""
_OPENS: Final = "ctrl_img"


def check_prompt(prompt: str, trigger: str, *, where: str) -> None:
    """Options may stand in a prompt, `--w 512`: of numbers, and none that has the trainer open a file.

    Raises:
        JobInvalid: once the trigger word is put in, one of them fails.
    """
    for part in prompt.replace("[trigger]", trigger).split("--")[1:]:
        option = part.split(" ")[0].strip()
        text = part[len(option) :].strip()
        if option.startswith(_OPENS):
            raise JobInvalid(f"--{_OPENS} opens a file", where=where, kind=ErrorKind.REFUSED)
        try:
            _NUMBERS.get(option, str)(text)
        except ValueError:
            raise JobInvalid(
                f"--{option} {text!r:.60}: a number is wanted",
                where=where,
                mend="Put options behind the text, as in `zoe at the beach --w 512 --h 768`",
            ) from None
