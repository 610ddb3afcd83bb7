"""Settings that say how rows are split, and what happens to copies across the splits."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from tasks.shared.formats.rows import Split

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SplitSettings:
    """Settings of every step that makes a corpus of the user's rows."""

    test_share: Share = 0.1
    """Share of the rows for the test, where no test file is given."""
    calibration_share: Share = 0.05
    """Share of the rows for pruning and quantization statistics, where no calibration file is given."""
    max_test: Annotated[int, Field(ge=1)] = 5000
    """Most rows for a test taken from the rows; the others stay in train."""
    max_calibration: Annotated[int, Field(ge=1)] = 1000
    """Most rows for a calibration split taken from the rows."""
    max_similarity: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Largest character 5-gram Jaccard similarity between a test conversation of 20 words or more and any conversation of another
    split; up to 0.75 for shorter ones, which are compared by words as well (`tasks/shared/text/near_copies.py`).  Beginnings and ends
    that many texts share are left out of the comparison."""
    on_overlap: Literal["drop_train", "drop_test", "move", "stop"] = "drop_train"
    """What happens to copies of test conversations in other splits: drop_train removes the copies, drop_test the test conversations,
    move puts these into train, stop refuses the data."""
    articles: str = ""
    """JSON-lines file of articles ({"id", "title", "text", "topic", "held_out"}); empty: no articles."""

    @model_validator(mode="after")
    def _train_remains(self) -> "SplitSettings":
        if self.test_share + self.calibration_share >= 1:
            raise ValueError("test_share and calibration_share leave nothing for train")
        return self

    @property
    def shares(self) -> dict[Split, float]:
        """Shares of the splits that may be taken from the rows."""
        return {"test": self.test_share, "calibration": self.calibration_share}

    def expect(self, rows: int, missing: Sequence[Split] = ("test", "calibration")) -> dict[Split, int]:
        """Return the expected rows by split, if the missing splits are taken from so many rows."""
        taken = {split: min(self.most[split], int(rows * self.shares[split])) for split in missing}
        return {"train": rows - sum(taken.values()), **taken}

    @property
    def most(self) -> dict[Split, int]:
        """Largest number of rows of these splits."""
        return {"test": self.max_test, "calibration": self.max_calibration}
