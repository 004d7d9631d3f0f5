"""Files that this library writes and reads back: atomic writing, reading with limits, JSON checked against a schema.
YAML that users write is read here, too.

Whoever can write a file can compute its checksum, so nothing in a file is believed before its type, its size and its
fields are checked. Only regular files are opened. Files are replaced, never opened for writing under their own name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

import msgspec

from ms_prefstream.errors import PrefStreamError, printable

Schema = TypeVar("Schema")

MOST_BYTES = 64 * 2**20
"""The largest description (manifest, state, plan, notes) that is read, in bytes."""

_MOST_YAML = 2**20  # bytes, and values once aliases are replaced; the parser takes a second for so many

TEMPORARY = r"\.[0-9a-f]{12}\.new"
"""What `written` appends to the name of a file until it is complete, as a regular expression."""
_SHORTENED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/[^/]")
_HEAD = 32  # bytes at the begin of a file that are the same for all of its kind

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_ROOM, _RIGHTS = "Make room, then run again", "Give this user the permission, or use another path"
_OPEN_FILES = ("too many files are open", "Raise the limit (`ulimit -n`), then run again")
_CAUSES = {
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("the disk quota is used up", _ROOM),
    errno.EROFS: ("the file system is read-only", "Use a path on another one"),
    errno.EACCES: ("the permissions forbid it", _RIGHTS),
    errno.EPERM: ("the permissions forbid it", _RIGHTS),
    errno.EIO: ("the disk reports an error", "Check the disk, or use a path on another one, then run again"),
    errno.EMFILE: _OPEN_FILES,
    errno.ENFILE: _OPEN_FILES,
    errno.ENAMETOOLONG: ("the name is too long", "Use a shorter path"),
    errno.ELOOP: ("it is a link", "Name the file itself"),
}
"""System errors: the cause, and the remedy."""
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""System errors that say that nothing is at a path: no file can have the name, or a link leads to itself."""


class LocalCopy(str):
    """Path of a local copy, which is shown as the address that it was copied from.

    The system's functions get the path; ``f"{path}"``, ``str(path)`` and ``repr(path)`` give the address. What is made
    of it with other methods of `str` or with `os.path` is an ordinary path.

    Args:
        path: The copy.
        address: What it is called in messages, origins and names.
        held: Kept as long as the path is in use, such as a lock on the copy; it does not travel to other processes.
    """

    __slots__ = ("address", "held")

    def __new__(cls, path: str, address: str, held: object = None) -> LocalCopy:
        made = super().__new__(cls, path)
        made.address, made.held = address, held
        return made

    address: str
    held: object

    def __str__(self) -> str:
        return self.address

    def __format__(self, spec: str) -> str:
        return format(self.address, spec)

    def __repr__(self) -> str:
        return repr(self.address)

    def __reduce__(self) -> tuple[type[LocalCopy], tuple[str, str]]:
        return LocalCopy, (self[:], self.address)

    def below(self, name: str) -> LocalCopy:
        """Returns the path of a file in this folder."""
        return LocalCopy(os.path.join(self, name), f"{self.address}/{name}", self.held)


def below(folder: str, name: str) -> str:
    """Returns the path of a file in a folder; that of a local copy is shown as its address."""
    return folder.below(name) if isinstance(folder, LocalCopy) else os.path.join(folder, name)


def cause_of(error: OSError | ValueError) -> str:
    """Returns why a system call failed, as part of a sentence; a ValueError is about a NUL or surrogate in a path."""
    if not isinstance(error, OSError):
        return printable(str(error))
    known = _CAUSES.get(error.errno or 0)
    return known[0] if known else error.strerror or str(error)


def cause_and_remedy(error: OSError | ValueError) -> str:
    """Returns why a system call failed and what to do: the end of a sentence, and one without its full stop."""
    known = _CAUSES.get(error.errno or 0) if isinstance(error, OSError) else None
    return f"{cause_of(error)}. {known[1] if known else 'Check the path'}"


def status_of(path: str | os.PathLike[str], follow: bool = False) -> os.stat_result | None:
    """Returns the status of what is at a path; None if nothing is.

    `os.path.exists` and its like also deny what the system cannot look up, such as a file on a disk with an error.

    Raises:
        OSError: The system cannot say.
    """
    try:
        return os.stat(path, follow_symlinks=follow)
    except ValueError:  # no file can have such a path
        return None
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def exists(path: str | os.PathLike[str]) -> bool:
    """Returns whether something is at a path, be it a link to nothing; errors as for `status_of`."""
    return status_of(path) is not None


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Returns whether a folder is at a path; errors as for `status_of`."""
    found = status_of(path, follow=True)
    return found is not None and stat.S_ISDIR(found.st_mode)


def size_of(path: str | os.PathLike[str]) -> int | None:
    """Returns the bytes of the regular file at a path; None if there is none. Errors as for `status_of`."""
    found = status_of(path, follow=True)
    return found.st_size if found is not None and stat.S_ISREG(found.st_mode) else None


def walk(folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walks a folder as `os.walk`, which silently skips folders that cannot be listed; here that is an error.

    A folder that another process has deleted meanwhile is skipped.

    Raises:
        OSError: A folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    return os.walk(folder, onerror=fail)


def is_at(path: str | os.PathLike[str], number: int) -> bool:
    """Returns whether an open file, given its descriptor, is still the one at a path; errors as for `status_of`."""
    found = status_of(path)
    return found is not None and os.path.samestat(os.fstat(number), found)


def close_quietly(number: int) -> None:
    """Closes a descriptor that nothing was written to; on Linux it is closed also where the system reports an error."""
    with contextlib.suppress(OSError):
        os.close(number)


def is_shortened_url(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a URL that a `pathlib.Path` was made of, which turns ``s3://`` into ``s3:/``."""
    text = os.fsdecode(path)
    return _SHORTENED.match(text) is not None and not os.path.lexists(text.partition("/")[0])


def check_path(path: str | os.PathLike[str], error: type[PrefStreamError], what: str) -> None:
    """Raises an error of this class if no file can have this path, whether there is one or not."""
    if is_shortened_url(path):
        raise error(f"{what} {shown(path)} is a URL that has lost a slash, as in pathlib. Pass it as a string.")
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # whoever opens it says so
    except (OSError, ValueError) as problem:
        raise error(f"{what} {shown(path)} cannot be a path: {cause_of(problem)}. Give it another one.") from None


def open_regular(path: str | os.PathLike[str], error: type[PrefStreamError], what: str) -> IO[bytes]:
    """Opens a regular file for reading; a pipe, device or folder is refused at once instead of waiting for it.

    Args:
        path: The file. Symbolic links to regular files are followed.
        error: The class of the error.
        what: What the file is, for the error: ``"the length index"``.

    Raises:
        FileNotFoundError: There is no such file; the caller knows what that means.
        PrefStreamError: Of the class `error`: the file is not regular, or cannot be read.
    """
    try:
        return open(path, "rb", opener=lambda *_: open_descriptor(path, error, what))  # closed by `open` if that fails
    except (FileNotFoundError, PrefStreamError):
        raise
    except (OSError, ValueError) as problem:  # ValueError: a NUL or a surrogate in the path
        raise error(f"{what} {shown(path)} cannot be read: {cause_and_remedy(problem)}.") from problem


def open_descriptor(path: str | os.PathLike[str], error: type[PrefStreamError], what: str) -> int:
    """Returns a descriptor of a regular file for reading; arguments as for `open_regular`.

    Raises:
        OSError: The file cannot be opened.
        ValueError: The path is none.
        PrefStreamError: Of the class `error`: the file is not regular.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        kind = stat.S_IFMT(os.fstat(number).st_mode)
        if kind != stat.S_IFREG:
            raise error(f"{what} {shown(path)} is {_KINDS.get(kind, 'no file')}; expected a regular file.")
    except BaseException:
        close_quietly(number)
        raise
    return number


def read_file(path: str | os.PathLike[str], error: type[PrefStreamError], what: str, most: int = MOST_BYTES) -> bytes:
    """Returns the contents of a regular file of at most `most` bytes; errors as for `open_regular`."""
    with open_regular(path, error, what) as file:
        try:
            found = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)  # which allocates no more
        except OSError as problem:
            raise error(f"{what} {shown(path)} cannot be read: {cause_and_remedy(problem)}.") from problem
    if len(found) > most:
        raise error(f"{what} {shown(path)} is larger than {most:,} bytes, the most that is read. It is damaged.")
    return found


def parse_json(
    text: bytes, schema: type[Schema], path: str | os.PathLike[str], error: type[PrefStreamError], what: str
) -> Schema:
    """Returns JSON as a value of the schema, checked field by field.

    Args:
        text: The JSON.
        schema: A `msgspec.Struct`, or any type that msgspec can check.
        path: Where the text was read, for the error.
        error: The class of the error.
        what: What the file is, for the error.

    Raises:
        PrefStreamError: Of the class `error`: names the field, what was found and what was expected.
    """
    try:
        return msgspec.json.decode(text, type=schema)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        reason = "it is nested too deeply" if isinstance(problem, RecursionError) else str(problem)
        raise error(f"{what} {shown(path)} is damaged: {printable(reason)}.") from problem


def read_yaml(path: str | os.PathLike[str], error: type[PrefStreamError], what: str) -> Any:
    """Returns the YAML in a file as plain values; arguments as for `open_regular`.

    An alias counts as all that it stands for, so that the values of a small file are few.

    Raises:
        FileNotFoundError: There is no such file.
        PrefStreamError: Of the class `error`: it cannot be read, is no YAML, too large, or holds itself.
    """
    import yaml

    text = read_file(path, error, what, _MOST_YAML)
    loader: Any = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count_values(node, {})
        return loader.construct_document(node)
    except Exception as problem:  # what PyYAML raises for a wrong number, date or tag has no common class
        raise error(f"{shown(path)} cannot be read as YAML: {printable(' '.join(str(problem).split()))}.") from None
    finally:
        if loader is not None:
            loader.dispose()


def _count_values(node: Any, counted: dict[int, int]) -> int:
    """Returns the number of values of a YAML node with what its aliases stand for; raises ValueError if they are many.

    Args:
        node: A node of PyYAML.
        counted: Numbers of nodes by their identity, 0 for those that are being counted; added to.
    """
    found = counted.get(id(node))
    if found == 0:
        raise ValueError("an alias stands for a value that holds the alias")
    if found is None:
        counted[id(node)] = 0
        parts = node.value if isinstance(node.value, list) else ()
        inner = (one for part in parts for one in (part if isinstance(part, tuple) else (part,)))
        found = counted[id(node)] = 1 + sum(_count_values(one, counted) for one in inner)
        if found > _MOST_YAML:
            raise ValueError(f"its aliases stand for more than {_MOST_YAML:,} values")
    return found


def check_own(
    path: str | os.PathLike[str], is_own: Callable[[IO[bytes]], bool], error: type[PrefStreamError], what: str
) -> None:
    """Raises unless a file may be written at `path`: nothing is there, or an empty file, or one of the same kind.

    Args:
        path: The file that is about to be replaced.
        is_own: Returns whether an open file is of the kind that is written; looks at its contents.
        error: The class of the error.
        what: What is written, for the error: ``"the state"``.

    Raises:
        PrefStreamError: Of the class `error`: something else is there, which is left as it is.
    """
    try:
        with open_regular(path, error, what) as file:
            try:
                if not os.fstat(file.fileno()).st_size or is_own(file):
                    return
            except OSError as problem:
                raise error(f"{what} {shown(path)} cannot be read: {cause_and_remedy(problem)}.") from problem
            found = "holds something else"
    except FileNotFoundError:
        if not os.path.islink(path):  # a file may have appeared since
            return
        found = "is a link to nothing"
    raise error(f"{what} {shown(path)} exists and {found}; it is left as it is. Move it away, or name another file.")


@contextlib.contextmanager
def written(path: str | os.PathLike[str], error: type[PrefStreamError], what: str) -> Iterator[IO[bytes]]:
    """Opens a new file that replaces `path`, complete and on disk, when the `with` block ends without an error.

    The file has a random name beside `path` until then, so no other file is opened, truncated or deleted. A link at
    `path` is replaced, not followed. The file is locked while it is written; see `remove_leftovers`.

    Raises:
        PrefStreamError: Of the class `error`: says what cannot be written and why.
    """
    target = os.fspath(path)
    try:
        temporary, file = _locked(target)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(os.path.dirname(target))
    except (OSError, ValueError) as problem:
        raise error(f"{what} {shown(path)} cannot be written: {cause_and_remedy(problem)}.") from problem


def _locked(target: str) -> tuple[str, IO[bytes]]:
    """Creates a file beside `target` and locks it. Returns its path and the file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        temporary = f"{target}.{secrets.token_hex(6)}.new"
        try:
            file = open(temporary, "wb", opener=lambda path, _: os.open(path, flags, 0o666))  # noqa: SIM115
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if exists(temporary):
                return temporary, file
        except FileExistsError:
            continue
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        file.close()  # another process took it for a leftover before it was locked


def write_file(path: str | os.PathLike[str], data: bytes | memoryview, error: type[PrefStreamError], what: str) -> None:
    """Writes a file as a whole, atomically, and deletes what killed writes of it left; errors as for `written`."""
    with written(path, error, what) as file:
        file.write(data)
    remove_leftovers(path)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Deletes what killed processes left of their writes of `path`, which has just been written.

    A leftover has a name of `written`, is a regular file that no process has locked, and begins as the file at `path`
    does; a torn one may be shorter. Whatever cannot be deleted stays.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = re.compile(re.escape(name) + TEMPORARY)
    with contextlib.suppress(OSError, PrefStreamError):
        left = [entry.path for entry in os.scandir(folder) if temporary.fullmatch(entry.name)]
        if not left:
            return
        with open_regular(path, PrefStreamError, "the file") as file:
            head = file.read(_HEAD)
        for one in left:
            with contextlib.suppress(OSError, PrefStreamError):
                _remove_leftover(one, head)


def _remove_leftover(path: str, head: bytes) -> None:
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if stat.S_ISREG(os.fstat(number).st_mode):
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.pread(number, _HEAD, 0)
            if head.startswith(found) and is_at(path, number):
                os.unlink(path)
    finally:
        close_quietly(number)


def sync_folder(folder: str) -> None:
    """Waits until the names in a folder are on disk."""
    number = os.open(folder or ".", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        close_quietly(number)


def shown(path: str | os.PathLike[str]) -> str:
    """Returns a path for an error: control characters and surrogates as escapes, long ones shortened."""
    return printable(f"{path}" if isinstance(path, str) else os.fspath(path))
