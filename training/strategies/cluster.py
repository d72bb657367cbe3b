"""Who starts the processes of a run on a cluster."""

from __future__ import annotations

import os

from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

from utils.devices import Devices
from utils.launch import in_job, step_tasks


def cluster_environment(devices: Devices) -> ClusterEnvironment | None:
    """Who starts the processes in a SLURM job: srun, or else this process; None where Lightning finds that out itself.

    Lightning takes the number of tasks that the job asked for as that of the processes, whether srun started them or
    not: a run without srun would be a part of a run that never begins, or one process where several were asked for.
    """
    if not in_job() or "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    if step_tasks() == 1:
        return LightningEnvironment()
    # check_launcher saw to it that there is a task for each device; Lightning wants it to be asked for in these words.
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices.count))
    return SLURMEnvironment(auto_requeue=False)
