"""Files that appear under their names when they are complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hamnet.errors import ConfigError

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`, with its suffix; renamed to `path` if the block ends without error.

    What stood under the name stays until then. Raises :class:`ConfigError` if nothing can be written there.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes private files
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(
            f"cannot be written ({error.strerror})", expected="a file in a folder that exists", path=path
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
