"""Files that may be compressed: ``x.scfout``, ``x.scfout.gz``, ``.xz`` or ``.zst`` read alike.

Plain files are memory-mapped. Compressed ones are expanded in steps and refused as soon as they grow out of
proportion, so that a damaged or hostile file cannot fill the memory.
"""

from __future__ import annotations

import lzma
import mmap
import zlib
from pathlib import Path

import zstandard

from hamnet.errors import ReaderError

__all__ = ["SUFFIXES", "companion", "files_ending", "logical_name", "read_buffer", "read_text"]

SUFFIXES = (".gz", ".xz", ".zst")
"""Of compressed files, after the suffix that tells what is inside."""

_MAX_RATIO = 200
_FREE_BYTES = 2**26  # below this, any ratio is harmless
# One step of input expands to at most 64 MiB, which a zstd run-length block of 4 bytes (128 KiB) decides.
_STEP_BYTES = 2**11
_MAX_WINDOW_BYTES = 2**27


def logical_name(path: Path) -> str:
    """File name without the suffix of a compression."""
    return path.stem if path.suffix in SUFFIXES else path.name


def files_ending(folder: Path, ending: str) -> list[Path]:
    """Files in the folder whose name without compression ends so, sorted; empty where the folder cannot be listed."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if logical_name(p).endswith(ending) and p.is_file())


def companion(folder: Path, name: str) -> Path | None:
    """The file of this name, plain or compressed, or None. Two of them are an error: which one counts?"""
    found = [p for p in (folder / f"{name}{suffix}" for suffix in ("", *SUFFIXES)) if p.is_file()]
    if len(found) > 1:
        raise ReaderError(
            f"{' and '.join(p.name for p in found)}",
            expected=f"one file {name}",
            remedy="remove the stale copy",
            path=folder,
        )
    return found[0] if found else None


def read_buffer(path: Path) -> bytes | mmap.mmap:
    """Content of the file: a read-only memory map of a plain file, else the expanded bytes.

    Raises :class:`ReaderError` for a file that is missing, empty, damaged or truncated in its compression.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size == 0:
                raise ReaderError("an empty file", expected="output of a DFT code", path=path)
            if path.suffix in SUFFIXES:
                return _expand(file, path, size)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ReaderError(f"cannot be read: {error.strerror or error}", path=path) from error


def read_text(path: Path) -> str:
    """Content as text; bytes that are not UTF-8 are replaced, they only occur in titles and comments."""
    return bytes(read_buffer(path)).decode("utf-8", errors="replace")


def _decoder(suffix: str):
    if suffix == ".gz":
        return zlib.decompressobj(wbits=31)
    if suffix == ".xz":
        return lzma.LZMADecompressor(memlimit=2**30)
    return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj()


def _expand(file, path: Path, size: int) -> bytes:
    limit = max(_FREE_BYTES, _MAX_RATIO * size)
    pieces: list[bytes] = []
    expanded = taken = 0
    decoder, waiting = _decoder(path.suffix), b""
    try:
        while True:
            data = waiting or file.read(_STEP_BYTES)
            taken += len(data) - len(waiting)
            waiting = b""
            if not data:
                break
            if decoder.eof:  # another member, stream or frame follows
                decoder = _decoder(path.suffix)
            piece = decoder.decompress(data)
            waiting = decoder.unused_data if decoder.eof else b""
            expanded += len(piece)
            pieces.append(piece)
            if expanded > limit:
                raise ReaderError(
                    f"{taken} compressed bytes expand to more than {expanded}",
                    expected=f"at most {_MAX_RATIO} times the {size} bytes of the file",
                    remedy="expand it by hand if it is what it claims to be",
                    path=path,
                )
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError) as error:
        raise ReaderError(
            f"damaged compression: {error}",
            expected=f"a sound {path.suffix} file",
            remedy="copy it again from its source",
            path=path,
            place=f"near byte {taken} of the compressed file",
        ) from error
    if not decoder.eof:
        raise ReaderError(
            "ends in the middle of the compressed data",
            expected=f"a complete {path.suffix} file",
            remedy="copy it again from its source",
            path=path,
            place=f"byte {taken} of the compressed file",
        )
    if not expanded:
        raise ReaderError("an empty file", expected="output of a DFT code", path=path)
    return b"".join(pieces)
