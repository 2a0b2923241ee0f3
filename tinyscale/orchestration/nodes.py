"""Ask every node of a cluster: what the doctor checks there, and how much memory its GPUs have."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tinyscale.doctor import Check, examine_node
from tinyscale.machine import gpu_bytes
from tinyscale.storage import Folder

NODE_SECONDS = 60.0  # for a node to start a process and answer

Answer = TypeVar("Answer")


def on_each_node(function: Callable[..., Answer], *arguments: object) -> dict[str, Answer | Exception]:
    """What a function of this package returns on each node of the Ray that is attached to, or why it could not say."""
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(function)
            asked[f"node {node['NodeManagerAddress']} {node['NodeID'][:6]}"] = task.remote(*arguments)
    answers: dict[str, Answer | Exception] = {}
    for name, answer in asked.items():
        try:
            answers[name] = ray.get(answer, timeout=NODE_SECONDS)
        except (ray.exceptions.RayError, ImportError) as error:
            answers[name] = error
    return answers


def examine_nodes(results: str) -> Iterator[Check]:
    """The doctor's checks of each node; one that reads the file that this process wrote shares the results folder."""
    folder, probe = Folder.at(results), f"{uuid.uuid4().hex}.txt"
    folder.write(probe, b"tinyscale doctor")
    try:
        for name, answer in on_each_node(examine_node, results, probe).items():
            if isinstance(answer, Exception):
                remedy = "install tinyscale there, at the same versions as here"
                yield Check("fail", name, f"runs nothing of ours ({str(answer).strip().splitlines()[-1]})", remedy)
            else:
                yield from (Check(check.level, f"{name}, {check.name}", check.found, check.remedy) for check in answer)
    finally:
        folder.delete(probe)


def least_gpu_bytes() -> float | None:
    """Memory of the cluster's smallest GPU; None without one, or where a node does not say."""
    answers = [answer for answer in on_each_node(gpu_bytes).values() if answer is not None]
    known = [answer for answer in answers if not isinstance(answer, Exception)]
    return min(known) if known and len(known) == len(answers) else None
