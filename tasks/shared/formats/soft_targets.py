"""Stored next-token distributions of a teacher: its k likeliest tokens at each position that counts, and the mass of the rest.

A folder of parts (`part-00000.safetensors`) with, for every position,
    ids    (positions, k)  uint16, or int32 for vocabularies over 65,536: the likeliest tokens, most likely first
    top    (positions, k)  float16: their log-probabilities at temperature 1
    tails  (positions, temperatures)  float32: log of the sum of exp(log-probability / temperature) over all other tokens
index.json, which finds a conversation's positions by the content of its tokens, and vocabulary.json, the teacher's tokens.
A tail per temperature is what makes other temperatures exact: the rest's mass cannot be guessed from its mass at another one.
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
    """Where one conversation's targets lie."""

    part: str
    start: int
    count: int


def row_key(input_ids: Sequence[int], labels: Sequence[int]) -> str:
    """A conversation by its tokens, in the teacher's numbers, and by which of them count."""
    return hashlib.sha256(json.dumps([list(input_ids), list(labels)], separators=(",", ":")).encode()).hexdigest()[:32]


def part_name(number: int) -> str:
    """File of one part."""
    return f"part-{number:05d}.safetensors"


def bytes_per_position(k: int, temperatures: int, vocabulary: int) -> int:
    """Bytes that a position takes."""
    return k * (2 if vocabulary <= SMALL else 4) + 2 * k + 4 * temperatures


def tail_shares(top: "Tensor", tails: "Tensor", temperatures: Sequence[float]) -> "Tensor":
    """(positions, temperatures): the part of the distribution at each temperature that is not among the k tokens.

    top: (positions, k) and tails: (positions, temperatures), as stored.
    """
    import torch

    kept = torch.stack([torch.logsumexp(top.float() / temperature, dim=-1) for temperature in temperatures], dim=-1)
    return torch.sigmoid(tails - kept)


def write_index(
    folder: Path, rows: Mapping[str, Positions], tails: Mapping[float, float], k: int, vocabulary: Mapping[str, int]
) -> None:
    """index.json and vocabulary.json.  tails: by temperature, the mean share of the rest."""
    places = {key: [place.part, place.start, place.count] for key, place in sorted(rows.items())}
    index = {"k": k, "temperatures": list(tails), "tails": list(tails.values()), "rows": places}
    (folder / INDEX).write_text(json.dumps(index) + "\n", "utf-8")
    (folder / VOCABULARY).write_text(json.dumps(dict(vocabulary), ensure_ascii=False, sort_keys=True) + "\n", "utf-8")


class SoftTargets:
    """A folder of stored targets, read a conversation at a time from the mapped file: a run's memory holds none of them."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError if the folder is not one of stored targets, or if a part of it is missing or damaged."""
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
        """Another process opens the folder anew: a mapped file cannot be sent."""
        return type(self), (self.folder,)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def read(self, key: str, temperature: float) -> "tuple[Tensor, Tensor]":
        """(positions, k) int64 token ids, and (positions, k + 1) float32 log-probabilities at a temperature, the rest's last.

        Raises DataError for a temperature at which nothing was stored.
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
