"""Running tasks in this process, in worker processes, or on a Ray cluster."""

from pruner_zero.execution.executor import Executor, SerialExecutor, Work, Workers
from pruner_zero.execution.processes import ProcessExecutor
from pruner_zero.execution.registry import EXECUTORS, check_executor, make_executor
from pruner_zero.execution.time_limit import UNLIMITED, TimeLimit
from pruner_zero.execution.workers import WorkerExecutor

__all__ = [
    "EXECUTORS",
    "UNLIMITED",
    "Executor",
    "ProcessExecutor",
    "SerialExecutor",
    "TimeLimit",
    "Work",
    "WorkerExecutor",
    "Workers",
    "check_executor",
    "make_executor",
]
