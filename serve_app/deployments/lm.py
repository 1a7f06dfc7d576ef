"""The 5 Hz LM as a replica."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from models.music import MusicRequest, SongPlan
from serve_app.remote import Report, stream
from serve_app.settings import AppSettings


class LmReplica:
    def __init__(self, settings: AppSettings) -> None: ...
