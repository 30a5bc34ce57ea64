"""Train jobs: ai-toolkit run as a child process, checkpointed to the bucket."""

from handlers.train.handler import TrainHandler
from handlers.train.settings import TrainSettings

__all__ = ["TrainHandler", "TrainSettings"]
