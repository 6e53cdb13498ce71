"""Metrics, intervals and interaction statistics of a split, and how they are shown."""

from .statistics import compute_statistics
from .tasks import METRICS_BY_PROBLEM, TaskMetrics, compute_metrics, default_metric

__all__ = ["METRICS_BY_PROBLEM", "TaskMetrics", "compute_metrics", "compute_statistics", "default_metric"]
