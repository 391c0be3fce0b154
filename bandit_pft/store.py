"""A folder of finished tiles that survives the process that writes it: nothing is ever half there.

    manifest.json             what the sweep is: format, configuration, labels, provenance
    tiles/000000.npz          one finished tile of runs; done means that the file exists
    tiles/000000.part.npz     how far a long tile had come
    locks/0-of-1              held by the writer, with its process number and host

Every file is written under another name, forced to the disk and renamed. Tiles are npz: the archive's checksums show
damage, and no pickle is read or written.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bandit_pft.errors import ConfigError, StoreError
from bandit_pft.version import version

try:
    import fcntl
except ImportError:  # Windows: locks are then files that must not exist.
    fcntl = None

FORMAT = 3  # Tiles of format 2 did not carry their names.


class Worker(NamedTuple):
    """Worker `index` of `count` writes the tiles whose number leaves the remainder `index`."""

    index: int
    count: int

    @classmethod
    def of(cls, text: Any) -> Worker:
        """From "0/4", a pair of numbers, or "auto": this process among those that `join_processes` joined.

        Raises:
            ConfigError: not from 0/n to n-1/n.
        """
        if text == "auto":
            return cls(jax.process_index(), jax.process_count())
        try:
            index, count = map(int, str(text).split("/")) if isinstance(text, str) else text
            if 0 <= index < count:
                return cls(int(index), int(count))
        except (TypeError, ValueError):
            pass
        raise ConfigError(f"worker is {text!r}; write k/n with k from 0 to n - 1, such as 0/4, or auto")


@functools.cache
def versions() -> dict[str, str]:
    """Of what decides a result's bits."""
    return {name: version(name) for name in ("bandit-pft", "jax", "jaxlib", "numpy", "optax", "xarray")}


def machine() -> dict[str, Any]:
    """What else decides the last bits: processor, its vector instructions, and JAX's settings."""
    config = (
        "jax_enable_x64",
        "jax_default_matmul_precision",
        "jax_threefry_partitionable",
        "jax_numpy_dtype_promotion",
    )
    return {
        "device": jax.devices()[0].device_kind,
        "platform": f"{platform.system()} {platform.machine()}",
        "instructions": _instructions(),
        **{name: getattr(jax.config, name) for name in config},
    }


@functools.cache
def _instructions() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    except OSError:
        return ""
    return " ".join(sorted(flag for flag in flags if flag.startswith(("avx", "fma", "amx", "asimd", "sve"))))


def source_state(folder: Path) -> str | None:
    """Commit of the git repository around a folder, with "+ changes" if it is dirty; None without git."""
    command = ["git", "-C", str(folder), "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    about, changes = [], []
    for line in done.stdout.splitlines():
        (about if line.startswith("#") else changes).append(line)
    commit = next((line.split()[-1] for line in about if line.startswith("# branch.oid")), "(initial)")
    return None if commit == "(initial)" else commit + (" + changes" if changes else "")


# Asked once a process for each folder: git takes longer than a short sweep.
_source_state = functools.cache(source_state)


def provenance() -> dict[str, Any]:
    """Where results come from: versions, machine, and the commits of package and working folder."""
    return {
        "versions": versions(),
        "machine": machine(),
        "python": platform.python_version(),
        "git": {"package": _source_state(Path(__file__).parent), "working folder": _source_state(Path.cwd())},
    }


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested dictionary with dotted names."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}.{name}" if prefix else str(name))
    return found


def as_json(value: Any) -> Any:
    """Plain JSON: NumPy and JAX numbers as Python's, infinities as text.

    Raises:
        ConfigError: nan, which no configuration can mean.
    """
    if isinstance(value, Mapping):
        return {str(name): as_json(x) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(x) for x in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return as_json(np.asarray(value).tolist())
    if isinstance(value, float) and not np.isfinite(value):
        if np.isnan(value):
            raise ConfigError("a configuration holds nan; every number must be one that can be compared")
        return str(value)
    return value


class Store(NamedTuple):
    """An open folder. Make it with `opened`, which holds the writer's lock.

    Attributes:
        folder: holds the manifest.
        manifest: as it stands there.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def tiles(self) -> int:
        """Tiles of the whole sweep."""
        return self.manifest["tiles"]

    def path(self, number: int, part: bool = False) -> Path:
        """Of a tile, or of the checkpoint within it."""
        return self.folder / "tiles" / f"{number:06d}{'.part' if part else ''}.npz"

    def done(self) -> list[int]:
        """Numbers of the finished tiles."""
        return [number for number in range(self.tiles) if self.path(number).exists()]

    def write(self, number: int, arrays: Mapping[str, np.ndarray], part: bool = False) -> None:
        """Write a tile, whole or not at all; the finished one replaces its checkpoint."""
        path, buffer = self.path(number, part), io.BytesIO()
        marked: dict[str, Any] = {**arrays, "sweep": np.asarray(self.manifest["sweep"]), "name": np.asarray(path.name)}
        np.savez(buffer, **marked)
        write_file(path, buffer.getvalue())
        if not part:
            self.path(number, part=True).unlink(missing_ok=True)

    def read(self, number: int, part: bool = False) -> dict[str, np.ndarray]:
        """A tile's arrays.

        Raises:
            StoreError: damaged, cut off, not a tile of this sweep, or another tile under this one's name.
        """
        path = self.path(number, part)
        try:
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file}
        except Exception as error:  # A damaged archive shows as one of a dozen classes.
            raise StoreError(f"{path} is damaged ({error}): delete it and run the same again") from error
        if str(arrays.pop("sweep", None)) != self.manifest["sweep"]:
            raise StoreError(f"{path} does not belong to this sweep: delete it and run the same again")
        if (name := str(arrays.pop("name", None))) != path.name:
            raise StoreError(f"{path} was written as {name}: delete it and run the same again")
        return arrays


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the folder says it is.

    Raises:
        StoreError: no store, damaged, or of a newer version of this package.
    """
    path = folder / "manifest.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version, complete = found["format"], {"sweep", "tiles", "configuration", "frame", "provenance"} <= set(found)
    except FileNotFoundError as error:
        raise StoreError(f"{folder} holds no results: it has no manifest.json") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged ({error}): delete {folder} and run again") from error
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        advice = "upgrade bandit_pft" if newer else "run again in another folder, or read it with the older bandit_pft"
        raise StoreError(f"{path} has format {version}, this version reads {FORMAT}: {advice}")
    if not complete or not isinstance(found["tiles"], int):
        raise StoreError(f"{path} is damaged (parts are missing): delete {folder} and run again")
    return found


@contextlib.contextmanager
def opened(
    folder: Path, manifest: Mapping[str, Any], worker: Worker, *, room: float, warn: Callable[[str], None]
) -> Iterator[Store]:
    """Create the folder or go on in it, as its only writer, or as one of `worker.count`.

    Args:
        manifest: tiles, configuration, frame; format and provenance are added.
        room: bytes that the sweep is going to write, at most.
        warn: told in one line what may make the bits differ from those that are there.

    Raises:
        StoreError: the folder cannot be written, is full, is held by another writer, or holds another sweep.
    """
    plain = as_json(manifest)
    name = hashlib.sha256(json.dumps(plain, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]
    mine = {"format": FORMAT, "sweep": name, **plain, "provenance": provenance()}
    try:
        for name in ("tiles", "locks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StoreError(f"{folder} cannot be used as a store: {error}") from error
    if room > free:
        raise StoreError(f"{folder} has {free / 1e9:.2f} GB free, and the sweep writes up to {room / 1e9:.2f} GB: make "
                         "room, choose another disk, or record less often (every=...)")  # fmt: skip
    with contextlib.ExitStack() as held:
        with _lock(folder / "locks" / "door", wait=True):
            held.enter_context(_lock(folder / "locks" / f"{worker.index}-of-{worker.count}"))
            _refuse_other_counts(folder, worker)
            if (folder / "manifest.json").exists():
                found = read_manifest(folder)
                _compare(folder, found, mine, warn)
                mine = found
            else:
                if any((folder / "tiles").iterdir()):
                    raise StoreError(f"{folder} holds tiles and no manifest.json, so nobody knows of what: delete it")
                write_file(folder / "manifest.json", json.dumps(mine, indent=1, allow_nan=False).encode())
            _sweep_up(folder, worker)
        yield Store(folder, mine)


def _sweep_up(folder: Path, worker: Worker) -> None:
    """Remove what a writer that was killed left behind: the manifest's, and this worker's own tiles'."""
    finished = [path for path in folder.glob("tiles/*.part.npz") if (path.parent / f"{path.name[:6]}.npz").exists()]
    for left in (*folder.rglob("*.tmp.*"), *finished):
        number = left.name.partition(".")[0]
        if not number.isdecimal() or int(number) % worker.count == worker.index:
            left.unlink(missing_ok=True)


def _compare(folder: Path, found: dict[str, Any], mine: dict[str, Any], warn: Callable[[str], None]) -> None:
    there, here = (flat({"tiles": m["tiles"], **m["configuration"]}) for m in (found, mine))
    before, now = (flat({k: m["provenance"][k] for k in ("versions", "machine")}) for m in (found, mine))
    changed = _differences(before, now)
    keys = [key for key in dict.fromkeys((*there, *here)) if there.get(key) != here.get(key)]
    if changed:  # Another version lowers the same sweep to other programs.
        keys = [key for key in keys if not key.startswith("programs.")]
    if keys:
        shown = _differences({k: there.get(k) for k in keys}, {k: here.get(k) for k in keys})
        raise StoreError(f"{folder} holds another sweep: choose another folder, or delete this one. "
                         f"Different: {shown}")  # fmt: skip
    if changed:
        warn(f"{folder} was begun elsewhere, so the last bits may differ from here on: {changed}")


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], most: int = 6) -> str:
    keys = [key for key in dict.fromkeys((*there, *here)) if there.get(key) != here.get(key)]
    short = lambda value: text if len(text := str(value)) <= 40 else f"{text[:37]}..."
    lines = [f"{key} ({short(there.get(key))} there, {short(here.get(key))} here)" for key in keys[:most]]
    return ", ".join(lines) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _refuse_other_counts(folder: Path, worker: Worker) -> None:
    """Tiles are dealt out by the number of workers: all that write at one time must agree on it."""
    for path in (folder / "locks").glob("*-of-*"):
        if not path.name.endswith(f"-of-{worker.count}"):
            with _lock(path):
                pass


@contextlib.contextmanager
def _lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a file. The system lets go of it when the process ends, however it ends."""
    me = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise StoreError(f"{path.parents[1]} cannot be written: {error}") from error
    with file:
        try:
            if fcntl is None:
                raise OSError("no locks on this system")
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise StoreError(f"{path.parents[1]} is being written by {holder}: wait for it, stop it, or share the work "
                             "with worker=k/n, the same n for all") from None  # fmt: skip
        except OSError:
            with _claim(path.with_name(f"{path.name}.claim"), me, wait):
                yield
            return
        file.truncate(0)
        file.write(me)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


@contextlib.contextmanager
def _claim(path: Path, me: str, wait: bool) -> Iterator[None]:
    """Where the file system has no locks: a file that only one can create. It stays when its maker is killed."""
    if wait:  # Nobody knows how long: the worker's own claim decides.
        yield
        return
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(me)
    except FileExistsError:
        holder = path.read_text(encoding="utf-8").strip() or "another process"
        raise StoreError(f"{path.parents[1]} is being written by {holder}. This file system has no locks: if that "
                         f"process is gone, delete {path}") from None  # fmt: skip
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | memoryview) -> None:
    """All of the file or nothing, also when the process is killed, the disk is full, or the power fails.

    Raises:
        StoreError: the disk is full, or the file cannot be written. What was there before stays.
    """
    with _writing(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # The new name has to reach the disk as well.
            place = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(place)
            finally:
                os.close(place)


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before its content is made.

    Raises:
        StoreError: as `write_file`.
    """
    with _writing(path) as temporary:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary.touch()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """A name next to the file's; nothing stays under it."""
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error}): what was finished before is whole; make room and run "
                         "the same again") from error  # fmt: skip
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
