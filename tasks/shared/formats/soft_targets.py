"""Stored next-token distributions of a teacher: top-k tokens and tail mass per position.

A folder with parts (`part-00000.safetensors`), which hold, for every labeled position,
    ids    (positions, k)  uint16, or int32 for vocabularies over 65,536: the top-k tokens, most likely first
    top    (positions, k)  float16: their log-probabilities at temperature 1
    tails  (positions, temperatures)  float32: log of the sum of exp(log-probability / temperature) over all other tokens
index.json, which locates a conversation's positions by the content of its tokens, and vocabulary.json, the teacher's tokens.
The tails are stored for each temperature because the tail mass at one temperature cannot be derived from that at another.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.shared.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

INDEX, VOCABULARY = "index.json", "vocabulary.json"
SMALL = 2**16


@dataclass(frozen=True)
class Positions:
    """Location of one conversation's targets: part file, first position, number of positions."""

    part: str
    start: int
    count: int


def row_key(input_ids: Sequence[int], labels: Sequence[int]) -> str:
    """Digest that identifies a conversation by the teacher's token ids and the labels."""
    return hashlib.sha256(json.dumps([list(input_ids), list(labels)], separators=(",", ":")).encode()).hexdigest()[:32]


def part_name(number: int) -> str:
    """File name of a part."""
    return f"part-{number:05d}.safetensors"


def bytes_per_position(k: int, temperatures: int, vocabulary: int) -> int:
    """Storage per position, in bytes."""
    return k * (2 if vocabulary <= SMALL else 4) + 2 * k + 4 * temperatures


def tail_shares(top: "Tensor", tails: "Tensor", temperatures: Sequence[float]) -> "Tensor":
    """Probability mass outside the stored top-k tokens at each temperature.

    top: (positions, k) and tails: (positions, temperatures), as stored.
    Returns (positions, temperatures).
    """
    import torch

    kept = torch.stack([torch.logsumexp(top.float() / temperature, dim=-1) for temperature in temperatures], dim=-1)
    return torch.sigmoid(tails - kept)


def write_index(
    folder: Path, rows: Mapping[str, Positions], tails: Mapping[float, float], k: int, vocabulary: Mapping[str, int]
) -> None:
    """Write index.json and vocabulary.json.

    tails: mean probability mass outside the top-k tokens, by temperature.
    """
    places = {key: [place.part, place.start, place.count] for key, place in sorted(rows.items())}
    index = {"k": k, "temperatures": list(tails), "tails": list(tails.values()), "rows": places}
    (folder / INDEX).write_text(json.dumps(index) + "\n", "utf-8")
    (folder / VOCABULARY).write_text(json.dumps(dict(vocabulary), ensure_ascii=False, sort_keys=True) + "\n", "utf-8")


class SoftTargets:
    """A folder of stored targets, memory-mapped and read one conversation at a time."""

    def __init__(self, folder: Path) -> None:
        """Open a folder.  Raises DataError if it holds no stored targets, or damaged ones."""
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        try:
            index: dict[str, Any] = json.loads((folder / INDEX).read_text("utf-8"))
            self.vocabulary: dict[str, int] = json.loads((folder / VOCABULARY).read_text("utf-8"))
            self.k, self.temperatures = int(index["k"]), tuple(float(one) for one in index["temperatures"])
            self.tails = dict(zip(self.temperatures, map(float, index["tails"]), strict=True))
            self._rows = {key: Positions(*place) for key, place in index["rows"].items()}
            names = sorted({place.part for place in self._rows.values()})
            self._parts = {name: safe_open(folder / name, framework="pt") for name in names}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DataError(
                str(folder), f"no stored targets: {error}", "the artifact of a logits step", "run that step again"
            ) from error

    def __reduce__(self) -> tuple[type["SoftTargets"], tuple[Path]]:
        """Pickle the path only, since a mapped file cannot be sent to another process."""
        return type(self), (self.folder,)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def read(self, key: str, temperature: float) -> "tuple[Tensor, Tensor]":
        """Read a conversation's targets: token ids and log-probabilities at a temperature.

        Returns (positions, k) int64 ids, and (positions, k + 1) float32 log-probabilities whose last column is the tail.
        Raises DataError for a temperature that was not stored.
        """
        import torch

        if temperature not in self.temperatures:
            raise DataError(
                "temperature", f"{temperature:g}", f"one that was stored: {', '.join(f'{t:g}' for t in self.temperatures)}",
                "list it in the logits step's temperatures",
            )  # fmt: skip
        place = self._rows[key]
        part, rows = self._parts[place.part], slice(place.start, place.start + place.count)
        ids, top = (part.get_slice(name)[rows] for name in ("ids", "top"))
        tail = part.get_slice("tails")[rows][:, self.temperatures.index(temperature)]
        masses = torch.cat([top.float() / temperature, tail[:, None]], dim=-1)
        return ids.long(), masses - torch.logsumexp(masses, dim=-1, keepdim=True)
