"""Records of runs: MLflow behind a small interface, and `NullTracker`, which records nothing.

A parent run per flow, a child per step that really ran; a reused step is a tag on the parent.  Only this package imports mlflow.
"""

from flows.tracking.interface import NullTracker, StepRecord, Tracker
from flows.tracking.mlflow_tracker import MlflowTracker

__all__ = ["MlflowTracker", "NullTracker", "StepRecord", "Tracker"]
