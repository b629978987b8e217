"""What made the vectors of an archive: a model's name and revision, and what its vectors are."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from stochcl.errors import ModelMismatch
from stochcl.messages import escape_name

EMBEDDER_KEY = "embedder"
"""The key of the metadata of an Arrow schema that names it, as ``NAME`` or ``NAME@REVISION``."""


@dataclass(frozen=True)
class Embedder:
    """The model that made vectors, as far as it is known.

    Parameters
    ----------
    name : str
        As its hub calls it, such as ``sentence-transformers/all-MiniLM-L6-v2``.
    revision : str
        A commit, a tag or a version; empty where it is not known.
    width : int
        Numbers of a vector; 0 where it is not known.
    normalised : bool, optional
        Whether all vectors have length one; None where it is not known.

    Examples
    --------
    >>> Embedder.parse("org/model@v2")
    Embedder(name='org/model', revision='v2', width=0, normalised=None)
    >>> Embedder("org/model", "v2").difference(Embedder("model", "v1"))
    'revision v2, not v1'
    """

    name: str
    revision: str = ""
    width: int = 0
    normalised: bool | None = None

    @classmethod
    def parse(cls, text: str) -> Embedder:
        """Read ``NAME`` or ``NAME@REVISION``."""
        name, _, revision = text.strip().partition("@")
        return cls(name, revision)

    @classmethod
    def of(cls, value: Any) -> Embedder | None:
        """Return what :meth:`to_json` gave; None of anything else."""
        kinds = {"name": str, "revision": str, "width": int, "normalised": bool}
        if not isinstance(value, dict) or not value.get("name"):
            return None
        known = {one.name: value[one.name] for one in fields(cls) if one.name in value}
        right = all(type(known[name]) is kinds[name] for name in known)
        return cls(**known) if right else None

    def to_json(self) -> dict[str, Any]:
        """Return what is known as JSON types."""
        return {
            one.name: value for one in fields(self) if (value := getattr(self, one.name)) not in ("", None, 0)
        } | ({} if self.normalised is None else {"normalised": self.normalised})

    def __str__(self) -> str:
        return escape_name(f"{self.name}@{self.revision}" if self.revision else self.name)

    def difference(self, other: Embedder) -> str:
        """Say what is known to differ of another, nothing where nothing is; a name may lack its organisation."""
        names, revisions = (self.name, other.name), (self.revision, other.revision)
        bare = any("/" not in name for name in names)
        if len({name.rpartition("/")[2] if bare else name for name in names}) > 1:
            return f"{self}, not {other}"
        if all(revisions) and not any(a.startswith(b) for a, b in (revisions, revisions[::-1])):
            return f"revision {escape_name(self.revision)}, not {escape_name(other.revision)}"
        if self.width and other.width and self.width != other.width:
            return f"{self.width:,} numbers, not {other.width:,}"
        if None not in (self.normalised, other.normalised) and self.normalised != other.normalised:
            said = {True: "normalised", False: "not normalised"}
            return f"{said[bool(self.normalised)]}, and not {said[bool(other.normalised)]}"
        return ""


def check_embedder(shown: str, one: Embedder | None, other: Embedder | None, than: str) -> None:
    """Raise ModelMismatch where two embedders are known to differ; ``than`` names what has the other."""
    if one is not None and other is not None and (difference := one.difference(other)):
        raise ModelMismatch(
            f"{shown}: its vectors were made by another embedder than those of {than} ({difference}), so that they "
            "cannot be compared; embed both with one model."
        )
