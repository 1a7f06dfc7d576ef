"""The first frame of an mp3 that says where its music begins and ends, after Xing and LAME's tag specification.

Every mp3 starts with the encoder's and the decoder's delay, 1,105 samples, and fills its last frame up. LAME's library
writes a frame of no sound in front in which players find both; its Python binding does not.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

SAMPLES_PER_FRAME = 1152
ENCODER_DELAY = 576  # a decoder adds 529 of its own, and knows that
SIDE_INFO = 32  # bytes, stereo
HAS_FRAMES_BYTES_TOC_QUALITY = 0b1111
CONSTANT_BIT_RATE = 1  # of revision 0 of the tag
_KBIT_PER_S = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_SAMPLE_RATES = (44_100, 48_000, 32_000)


@dataclass(frozen=True, slots=True)
class _Frame:
    """The four bytes that open a frame of MPEG-1 layer III."""

    header: bytes

    @property
    def kbit_per_s(self) -> int:
        return _KBIT_PER_S[self.header[2] >> 4]

    @property
    def sample_rate(self) -> int:
        return _SAMPLE_RATES[self.header[2] >> 2 & 3]

    @property
    def is_padded(self) -> bool:
        return bool(self.header[2] & 2)

    @property
    def size(self) -> int:
        return 144_000 * self.kbit_per_s // self.sample_rate + self.is_padded


def with_header(mp3: bytes, samples: int) -> bytes:
    """LAME's stream at a constant bit rate of 64 kbit/s or more, stereo, made of so many samples."""
    first = _Frame(mp3[:2] + bytes([mp3[2] & ~2]) + mp3[3:4])
    frames = _count(mp3)
    padding = frames * SAMPLES_PER_FRAME - samples - ENCODER_DELAY
    xing = struct.pack(
        ">4sIII100sI",
        b"Info",  # rather than Xing: the bit rate is constant
        HAS_FRAMES_BYTES_TOC_QUALITY,
        frames,
        len(mp3) + first.size,
        bytes(256 * percent // 100 for percent in range(100)),  # where in the file, in 256ths, each percent begins
        0,
    )
    lame = struct.pack(
        ">9sBBIHHBB3sBBHIH",
        b"LAME3.100",
        CONSTANT_BIT_RATE,
        0,  # low-pass: not said
        0,  # peak and gains: not said
        0,
        0,
        0,
        min(first.kbit_per_s, 255),
        (ENCODER_DELAY << 12 | padding).to_bytes(3, "big"),
        0,
        0,
        0,
        len(mp3) + first.size,
        0,  # checksum of the music: not said
    )
    tag = first.header + bytes(SIDE_INFO) + xing + lame
    return (tag + _crc16(tag).to_bytes(2, "big")).ljust(first.size, b"\0") + mp3


def _count(mp3: bytes) -> int:
    frames = at = 0
    while at + 4 <= len(mp3):
        at += _Frame(mp3[at : at + 4]).size
        frames += 1
    return frames


def _crc16(content: bytes) -> int:
    """CRC-16/ARC."""
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc
