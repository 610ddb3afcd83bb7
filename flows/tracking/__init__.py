"""Records of runs: MLflow behind a small interface, or `NullTracker`, which records nothing.

A flow is a parent run with a child run per executed step; a reused step is a tag on the parent.  Only this package imports mlflow.
"""

from flows.tracking.interface import NullTracker, StepRecord, Tracker
from flows.tracking.mlflow_tracker import MlflowTracker

__all__ = ["MlflowTracker", "NullTracker", "StepRecord", "Tracker"]
