"""Checkpoints: nested dictionaries of arrays and plain values in one file, as safetensors or as ``.npz``.

Arrays are stored as they are, under dotted names; everything else is JSON. The suffix of the file name
decides the format: ``.safetensors`` (needs that library) or ``.npz`` (NumPy alone). Neither can hold code, so
a file from somebody else can at worst be refused.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastconv.train.files import write_atomically

FORMAT = "fastconv-checkpoint"
VERSION = 1
SUFFIXES = (".safetensors", ".npz")

_HEADER_ENTRY = "__header__"  # of the .npz form: the JSON as bytes
_RESERVED = {_HEADER_ENTRY, "__metadata__"}
_SAFETENSORS_DTYPES = {
    "BOOL": np.dtype("?"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # bits, which "$bfloat16" makes numbers
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "F64": np.dtype("<f8"),
}

Arrays = dict[str, NDArray[Any]]


class CheckpointError(ValueError):
    """A checkpoint is damaged, of another version, or of another training; the message names the file."""


def save_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Writes ``state`` to a file, which is whole at any moment: the old one until it is the new one.

    Parameters
    ----------
    path : path
        Ends in ``.safetensors`` or ``.npz``; its folder must exist.
    state : dict
        Dictionaries, lists, tuples, arrays of bool, int or float types (bfloat16 among them), numbers, strings,
        ``None``; nested at will.

    Raises
    ------
    ValueError
        Another suffix.
    TypeError
        A value that cannot be stored; the message names it.
    ImportError
        ``.safetensors`` without that library.
    OSError
        The file cannot be written; the old one is as it was.
    """
    suffix = check_suffix(path)
    arrays: Arrays = {}
    tree = _pack(state, "", arrays)
    header = json.dumps({"format": FORMAT, "version": VERSION, "state": tree}, allow_nan=False)
    data = _npz(header, arrays) if suffix == ".npz" else _safetensors().save(arrays, {FORMAT: header})
    write_atomically(path, data)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_checkpoint` was given, with new arrays.

    Raises
    ------
    CheckpointError
        The file is damaged, truncated, or no checkpoint of this version.
    ValueError
        A suffix other than ``.safetensors`` and ``.npz``.
    ImportError
        ``.safetensors`` without that library, or bfloat16 arrays without ``ml_dtypes``.
    OSError
        The file cannot be read.
    """
    suffix = check_suffix(path)
    data = Path(path).read_bytes()
    try:
        header, arrays = _read_npz(data) if suffix == ".npz" else _read_safetensors(data)
        return _unpack_header(json.loads(header), arrays)
    except (ValueError, LookupError, TypeError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path}: not a fastconv checkpoint, or damaged: {reason}") from error


def check_suffix(path: str | os.PathLike[str]) -> str:
    """The suffix of ``path`` if it names a format that can be used here.

    Raises
    ------
    ValueError
        It does not.
    ImportError
        The library for it is missing.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: a checkpoint's name must end in {' or '.join(SUFFIXES)}")
    if suffix == ".safetensors":
        _safetensors()
    return suffix


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            ".safetensors files need that library: pip install 'fastconv[train]', or use .npz"
        ) from error
    return safetensors.numpy


# --- nested values <-> JSON and arrays ---
#
# JSON's own types stand for themselves. Everything else is an object with one key that starts with "$".


def _pack(value: Any, name: str, arrays: Arrays) -> Any:
    """The JSON form of ``value``; its arrays go into ``arrays`` under names that start with ``name``."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        stored = {"$array" if isinstance(value, np.ndarray) else "$scalar": _store(value, name, arrays)}
        return {"$bfloat16": stored} if _is_bfloat16(value) else stored
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, list):
        return [_pack(item, _join(name, k), arrays) for k, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": _pack(list(value), name, arrays)}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _pack(item, _join(name, key), arrays) for key, item in value.items()}
        return {
            "$items": [[_pack(k, name, arrays), _pack(v, _join(name, k), arrays)] for k, v in value.items()]
        }
    raise TypeError(
        f"save_checkpoint: {name or 'the state'} is a {type(value).__name__}, which cannot be stored"
    )


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _store(value: NDArray[Any] | np.generic[Any], name: str, arrays: Arrays) -> str:
    if not _is_bfloat16(value) and (value.dtype.kind not in "biuf" or value.dtype.itemsize > 8):
        raise TypeError(f"save_checkpoint: {name} has dtype {value.dtype}, which cannot be stored")
    name = re.sub(r"[^\w.'-]", "_", name)  # what an archive may not take as the name of a file
    while name in arrays or name in _RESERVED:  # {"a.b": x, "a": {"b": y}}
        name += "'"
    # safetensors writes the memory as it lies: it must be contiguous and in little-endian order.
    arrays[name] = np.asarray(value, value.dtype.newbyteorder("<"), order="C")
    return name


def _is_bfloat16(value: NDArray[Any] | np.generic[Any]) -> bool:
    return value.dtype.kind == "V" and value.dtype.name == "bfloat16"


def _bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("a checkpoint of bfloat16 arrays needs ml_dtypes: pip install ml_dtypes") from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def _unpack_header(header: Any, arrays: Arrays) -> dict[str, Any]:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError("it does not call itself one")
    if header.get("version") != VERSION:
        raise ValueError(f"version {header.get('version')!r}, this fastconv reads {VERSION}")
    used: set[str] = set()
    state = _unpack(header["state"], arrays, used)
    if used != arrays.keys():
        raise ValueError(f"arrays that nothing refers to: {sorted(arrays.keys() - used)}")
    if not isinstance(state, dict):
        raise ValueError("its state is no dictionary")
    return state


def _unpack(value: Any, arrays: Arrays, used: set[str]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, arrays, used) for item in value]
    if not isinstance(value, dict):
        return value
    kind = next(iter(value), "")
    if not kind.startswith("$"):
        return {key: _unpack(item, arrays, used) for key, item in value.items()}
    content = value[kind]
    match kind:
        case "$array" | "$scalar":
            if content not in arrays:
                raise ValueError(f"array {content!r} is missing")
            used.add(content)
            return arrays[content] if kind == "$array" else arrays[content][()]
        case "$bfloat16":
            bits = _unpack(content, arrays, used)
            if getattr(bits, "dtype", None) != np.uint16:
                raise ValueError(f"{content!r} is no array of bfloat16")
            return bits.view(_bfloat16())
        case "$float" if content in ("nan", "inf", "-inf"):
            return float(content)
        case "$tuple":
            return tuple(_unpack(content, arrays, used))
        case "$items":
            return {_unpack(k, arrays, used): _unpack(v, arrays, used) for k, v in content}
    raise ValueError(f"unknown entry {kind} {content!r}")


# --- the two file formats ---


def _read_safetensors(data: bytes) -> tuple[str, Arrays]:
    """Header and arrays; checks every size and offset before the library allocates anything."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError(f"truncated: {len(data)} bytes, the header alone needs {8 + length}")
    entries = json.loads(data[8 : 8 + length], object_pairs_hook=_no_duplicates)
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError("its header is no table of arrays")
    metadata = entries.pop("__metadata__", {})
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        shape = entry["shape"]
        if entry["dtype"] not in _SAFETENSORS_DTYPES or not _all_lengths([begin, stop, *shape]):
            raise ValueError(f"{name}: dtype {entry['dtype']!r}, shape {shape}, bytes {begin} to {stop}")
        if begin != end or stop - begin != math.prod(shape) * _SAFETENSORS_DTYPES[entry["dtype"]].itemsize:
            raise ValueError(
                f"{name}: shape {shape} of {entry['dtype']} does not fill bytes {begin} to {stop}"
            )
        end = stop
    if end != len(data) - 8 - length:
        raise ValueError(f"{len(data) - 8 - length} bytes of arrays, the header says {end}")
    header = metadata.get(FORMAT)
    if not isinstance(header, str):
        raise ValueError("it does not call itself one")
    return header, {  # what `load` of the library does, which does not know BF16
        name: np.frombuffer(entry["data"], _SAFETENSORS_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in _safetensors().deserialize(data)
    }


def _all_lengths(values: Iterable[object]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError(f"duplicate keys: {sorted({name for name in names if names.count(name) > 1})}")
    return dict(pairs)


def _npz(header: str, arrays: Arrays) -> bytes:
    """As `numpy.savez` writes it, but with any names, the bits of bfloat16, and the same bytes each time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in {_HEADER_ENTRY: np.frombuffer(header.encode(), np.uint8), **arrays}.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                plain = array.view(np.uint16) if _is_bfloat16(array) else array
                np.lib.format.write_array(member, plain, allow_pickle=False)
    return buffer.getvalue()


def _read_npz(data: bytes) -> tuple[str, Arrays]:
    """Header and arrays; every member must be stored plainly, once, and be as long as its own header says."""
    arrays: Arrays = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(data):
                raise ValueError(f"{name}: {member.file_size} bytes, compressed; checkpoints are not")
            if name in arrays:
                raise ValueError(f"duplicate keys: {name}")
            arrays[name] = _read_npy(name, archive.read(member))
    if _HEADER_ENTRY not in arrays:
        raise ValueError("it does not call itself one")
    return arrays.pop(_HEADER_ENTRY).tobytes().decode(), arrays


def _read_npy(name: str, data: bytes) -> NDArray[Any]:
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{name}: not as NumPy writes it")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    nbytes = len(data) - file.tell()
    if dtype.kind not in "biuf" or (fortran and len(shape) > 1):
        raise ValueError(f"{name}: dtype {dtype}, {'Fortran' if fortran else 'C'} order")
    if not _all_lengths(shape) or math.prod(shape) * dtype.itemsize != nbytes:
        raise ValueError(f"{name}: shape {shape} of {dtype} does not fill {nbytes} bytes")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape).copy()
