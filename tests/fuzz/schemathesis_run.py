"""Requests made up from a server's own description of itself, and what it answers held against that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)


def schemathesis(
    address: str, seconds: float, folder: Path, without: str = "^$", patience_s: int = 30
) -> subprocess.CompletedProcess[str]:
    """Exit status 0 where nothing was found. No request may take longer than `patience_s`. `without`: a pattern of
    paths to leave out."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "--no-color", "run", f"{address}/openapi.json"]
    options = {
        "--max-time": round(seconds),
        "--checks": ",".join(CHECKS),
        "--request-timeout": patience_s,
        "--exclude-path-regex": without,
        "--warnings": "off",
        "--generation-database": "none",
    }
    given = [str(part) for option in options.items() for part in option]
    return subprocess.run([*command, *given], cwd=folder, capture_output=True, text=True, check=False)
