"""Names in object storage (``gs://``), and what a prepared store and a run do with them.

An object is there whole or not at all, and nothing can be renamed. What several objects are
together therefore appears one by one: the object that makes the others count (a store's manifest,
a checkpoint's seal) is put last and deleted first.

TensorStore talks to the service: it finds the credentials as Google's own tools do, asks again
after failures that may pass, and speaks to an emulator where ``TENSORSTORE_GCS_HTTP_URL`` says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from penn_jax.config import json_text, write_json
from penn_jax.types import InputError

SCHEME = "gs://"

ASKED_AGAIN = {"gcs_request_retries": {"max_retries": 7}}
"""After 1, 2, 4, … 32 seconds: for two minutes, so that a long run outlives a short outage."""
_ASKED_ONCE_MORE = {"gcs_request_retries": {"max_retries": 2}}
"""For three seconds: where a name or the network is wrong, the user is told at once."""

# What TensorStore reads otherwise in one of its addresses, and what no console shows.
_NAME = re.compile(r"gs://([a-z0-9][a-z0-9._-]+[a-z0-9])((?:/[^/?#%*\\\[\]\x00-\x1f\x7f]+)*)/?")


@dataclass(frozen=True)
class Remote:
    """A folder or a file in object storage: the few things of ``pathlib.Path`` that are needed.

    Every method raises InputError where the service cannot be reached or refuses.
    """

    bucket: str
    key: str
    """Without a slash at either end; empty for the bucket itself."""

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> Remote:
        return Remote(self.bucket, f"{self.key}/{name}".lstrip("/"))

    @property
    def name(self) -> str:
        """The last part."""
        return str(self).rpartition("/")[2]

    # ---- one object ----------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        """The content.

        Raises:
            FileNotFoundError: there is no such object.
        """
        content, _ = self.look()
        if content is None:
            raise FileNotFoundError(2, "No such object", str(self))
        return content

    def read_text(self, encoding: str = "utf-8") -> str:
        """The content as text."""
        return self.read_bytes().decode(encoding)

    def is_file(self) -> bool:
        """Whether there is such an object."""
        return self.look()[0] is not None

    def write_bytes(self, content: bytes) -> None:
        """Put the object: others see the old or the new one, never a part."""
        self._wait(_service(self.bucket).write(self.key, content))

    def look(self) -> tuple[bytes | None, bytes]:
        """The content, None where there is none, and which generation of the object it is."""
        found = self._wait(_service(self.bucket, patient=False).read(self.key))
        return (found.value if found.state == "value" else None), found.stamp.generation

    def put_if(self, seen: bytes, content: bytes | None) -> bytes | None:
        """Put or delete the object, unless somebody did so since it was looked at.

        Args:
            seen: the generation that ``look`` gave.
            content: None to delete it.

        Returns:
            The new generation; None where it is another's by now, and was left alone.
        """
        stamp = self._wait(_service(self.bucket).write(self.key, content, if_equal=seen))
        return stamp.generation or None

    # ---- a folder ------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The names of all objects in the folder, relative to it, sorted."""
        import tensorstore as ts

        inside = f"{self.key}/" if self.key else ""
        # "0" is the letter after "/".
        everything = ts.KvStore.KeyRange(inside, f"{self.key}0" if self.key else "")
        found = self._wait(_service(self.bucket).list(everything, len(inside.encode())))
        return sorted(name.decode() for name in found)

    def read(self, names: Sequence[str]) -> Mapping[str, bytes | None]:
        """The contents of several objects of the folder, None for those that are not there."""
        service = _service(self.bucket)
        asked = [(name, service.read((self / name).key)) for name in names]
        found = {name: (self / name)._wait(future) for name, future in asked}
        return {name: got.value if got.state == "value" else None for name, got in found.items()}

    def write(self, contents: Mapping[str, bytes]) -> None:
        """Put several objects into the folder, in no order, and wait for all."""
        service = _service(self.bucket)
        asked = [(name, service.write((self / name).key, c)) for name, c in contents.items()]
        for name, future in asked:
            (self / name)._wait(future)

    def delete(self, names: Collection[str]) -> None:
        """Delete objects of the folder, in no order; those that are not there count as deleted."""
        service = _service(self.bucket)
        asked = [(name, service.write((self / name).key, None)) for name in names]
        for name, future in asked:
            (self / name)._wait(future)

    def kvstore(self) -> dict[str, Any]:
        """The folder as TensorStore names it."""
        return {"driver": "gcs", "bucket": self.bucket, "path": f"{self.key}/".lstrip("/")}

    def _wait(self, future: Any) -> Any:
        try:
            return future.result()
        except (ValueError, OSError, RuntimeError) as error:
            raise self.out_of_reach(error) from error

    def out_of_reach(self, error: Exception) -> InputError:
        """What to tell the user of an error of TensorStore."""
        return InputError(
            self,
            f"refused or out of reach ({reason(error)})",
            "a bucket that you may read and write",
            "check its name, the network and your credentials "
            "(gcloud auth application-default login)",
        )


Place = Path | Remote
"""Where a store or a run is."""


def place(text: str) -> Place:
    """A name in object storage where it begins with ``gs://``, else a local path.

    Raises:
        InputError: a bucket or a name that cannot be, or another service.
    """
    if (there := remote(text)) is not None:
        return there
    if "://" in text:
        raise InputError(text, "is no place to write", "a local path or gs://", "choose another")
    return Path(text)


def remote(text: str) -> Remote | None:
    """The name in object storage that begins with ``gs://``, None for all else.

    Raises:
        InputError: a bucket or a name that cannot be.
    """
    if not text.startswith(SCHEME):
        return None
    if not (parts := _NAME.fullmatch(text)) or any(p in (".", "..") for p in text.split("/")):
        remedy = "leave out ? # % * [ ] and \\"
        raise InputError(text, "cannot be a name", "gs://BUCKET/FOLDER", remedy)
    return Remote(parts[1], parts[2].lstrip("/"))


def put_json(where: Place, values: dict[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the whole new one."""
    if isinstance(where, Remote):
        where.write_bytes(json_text(values).encode())
    else:
        write_json(where, values)


def reason(error: Exception) -> str:
    """What TensorStore says, without the service's whole answer."""
    return str(error).split(" [")[0]


@lru_cache
def _service(bucket: str, patient: bool = True) -> Any:
    import tensorstore as ts

    context = ts.Context(ASKED_AGAIN if patient else _ASKED_ONCE_MORE)
    return ts.KvStore.open({"driver": "gcs", "bucket": bucket}, context=context).result()


Tell = Callable[[str], None]
"""Takes one line for the user."""
