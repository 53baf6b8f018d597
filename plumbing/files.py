"""Files that nothing is lost of: written whole or not at all, and by one run at a time."""

import contextlib
import glob
import os
import sys
import zlib

from filelock import FileLock, Timeout


@contextlib.contextmanager
def writing(path):
    """What the disk refuses, a full one say, ends the program with one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save hides the error of the disk behind one of its own
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        print(f"{path}: {cause.strerror}", file=sys.stderr)
        raise SystemExit(2) from None


@contextlib.contextmanager
def replacing(path):
    """Yields a temporary path. A file written there replaces `path`, or is removed on an error.

    It is flushed to the disk first: `path` is whole even after a power cut."""
    temporary = path + ".tmp"
    with writing(path):
        try:
            yield temporary
            with open(temporary, "rb") as f:
                os.fsync(f.fileno())
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)


def write_file(path, data):
    """Writes bytes, all of them or none."""
    with replacing(path) as temporary, open(temporary, "wb") as f:
        f.write(data)


def lock(folder):
    """The lock of a folder, held until this process ends or forgets it. ValueError: of another."""
    try:
        holder = FileLock(os.path.join(folder, "lock"), timeout=0, is_singleton=True)
        holder.acquire()
    except Timeout:
        raise ValueError(f"another run is at work in {folder}") from None
    return holder


def model_files(folder):
    """The files of a checkpoint folder that say what the model is."""
    names = ("*config.json", "*.safetensors", "tokenizer*", "chat_template*")
    return [file for name in names for file in glob.glob(f"{glob.escape(folder)}/{name}")]


def checksums(paths):
    """{path: CRC} of those that are files."""
    sums = {}
    for path in filter(os.path.isfile, paths):
        sums[path] = 0
        with open(path, "rb") as f:
            while block := f.read(1 << 24):  # a shard may be larger than the memory
                sums[path] = zlib.crc32(block, sums[path])
    return sums
