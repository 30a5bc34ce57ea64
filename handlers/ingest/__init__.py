"""Ingest jobs: dataset folders, checked on a CPU and archived as immutable versions."""

from handlers.ingest.examine import check_folder
from handlers.ingest.handler import IngestHandler

__all__ = ["IngestHandler", "check_folder"]
