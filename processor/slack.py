"""A notifier that posts to a Slack channel, with a picture where there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from processor.errors import ConfigError
from processor.notify import Notice

if TYPE_CHECKING:
    from slack_sdk import WebClient

_TIMEOUT_S: Final = 10
_MAX_TEXT: Final = 2_900
"""A section block takes 3,000 characters."""


class Slack:
    """Posts as a bot, which has to be a member of the channel. Scopes: chat:write, files:write.

    Args:
        base_url: of Slack's Web API.
    """

    name = "slack"

    def __init__(self, token: str, channel: str, *, base_url: str = "https://slack.com/api/") -> None:
        self._token = token
        self._channel = channel
        self._base_url = base_url

    def send(self, notice: Notice, picture: Callable[[], bytes | None]) -> None:
        client = self._client()
        text = f"*{_escaped(notice.title)}*\n{_escaped(notice.text)}"[:_MAX_TEXT]
        if notice.url:
            text += f"\n<{notice.url}|Open>"
        image = picture()
        if image is not None:
            client.files_upload_v2(
                channel=self._channel,
                content=image,
                filename=f"{notice.subject}.jpg",
                title=notice.title,
                initial_comment=text,
            )
            return
        block = {"type": "section", "text": {"type": "mrkdwn", "text": text}}
        client.chat_postMessage(
            channel=self._channel, text=notice.title, blocks=[block], unfurl_links=False, unfurl_media=False
        )

    def _client(self) -> WebClient:
        try:
            from slack_sdk import WebClient  # late: an extra, and slow to import
            from slack_sdk.http_retry.builtin_handlers import (
                ConnectionErrorRetryHandler,
                RateLimitErrorRetryHandler,
                ServerErrorRetryHandler,
            )
        except ImportError as error:
            raise ConfigError(
                "notices to Slack need the notify extra",
                where="slack_channel",
                mend="pip install 'dropbatch[notify]'",
            ) from error
        handlers = [
            ConnectionErrorRetryHandler(max_retry_count=2),
            ServerErrorRetryHandler(max_retry_count=2),
            RateLimitErrorRetryHandler(max_retry_count=1),
        ]
        return WebClient(
            token=self._token, base_url=self._base_url, timeout=_TIMEOUT_S, retry_handlers=handlers
        )


def _escaped(text: str) -> str:
    """Names and errors come from users: no mention, no link of theirs gets through."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
