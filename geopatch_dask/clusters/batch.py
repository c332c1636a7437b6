"""Batch jobs that are kept alive: dask-jobqueue's clusters, and what is done when a job is gone.

Jobs end while there is work: their walltime is over, they are preempted or cancelled, their node is
lost.  Dask's cluster objects go on counting such a job among those they have, and never replace it.
Here somebody looks, every few seconds, while anything runs::

    a job without a worker  --- still in the queue? --- yes ---> it waits for a node, or starts
                                       |
                                       no
                                       v
    its end is told (log, and a topic of Dask's events)  --->  work left?  --->  a new job, new name

The batch system is asked, because only it knows a job that has not started yet from one that is
gone.  Jobs that keep ending before they ever were a worker (a module that is missing, a wrong
path) are not repeated for ever: then ``failure`` says why, which ends whoever waits for workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import itertools
import logging
import re
import shutil
from typing import Any

from dask_jobqueue.core import Job, JobQueueCluster
from dask_jobqueue.pbs import PBSCluster, PBSJob
from dask_jobqueue.slurm import SLURMCluster, SLURMJob
from distributed import Adaptive, Status
from distributed.deploy.cluster import Cluster as DaskCluster

from geopatch_dask.errors import OptionError

__all__ = ["LOOK", "TOPIC", "PbsCluster", "SlurmCluster", "job_of"]

#: Seconds between two looks at the queue, when some job has no worker.
LOOK = 5.0
#: Jobs in a row that may end without ever having been a worker, at least.
STILLBORN = 3
#: Seconds after which a question to the batch system counts as unanswered.
TIMEOUT = 30.0
#: Where the scheduler's events tell of jobs that are gone.
TOPIC = "geopatch-jobs"

_log = logging.getLogger(__name__)


class _Demand(Adaptive):
    """One slot for each super-tile that runs or waits.

    Dask's own rule counts seconds, which are not known before the first has finished, and takes
    workers from the last ones.
    """

    async def target(self) -> int:
        cluster: Any = self.cluster
        return _unfinished(cluster.scheduler)


class _Ending(Job):
    """A job whose status says that it has ended, or never began: Dask looks when it closes."""

    async def start(self) -> None:
        parent: Any = super()
        try:
            await parent.start()
        except BaseException:
            self.status = Status.failed
            raise

    async def close(self) -> None:
        parent: Any = super()
        await parent.close()
        self.status = Status.closed


class _SlurmJob(_Ending, SLURMJob):
    pass


class _PbsJob(_Ending, PBSJob):
    pass


class _Kept(JobQueueCluster):
    """What Slurm and PBS have in common; comes before dask-jobqueue's class."""

    #: Why no more jobs are submitted, once that is so.
    failure: str | None = None
    #: Command that lists the ids of this user's jobs, waiting and running.
    _listing: tuple[str, ...]
    #: Command that tells of one job, the id following; and where its answer says how it ended.
    _asking: tuple[str, ...]
    _state: re.Pattern[str]
    #: Command that submits a script.
    _submitting: str

    def __init__(self, **options: Any) -> None:
        self._numbers = itertools.count()
        self._seen: set[str] = set()  # names of jobs that had a worker
        self._stillborn = 0
        self._kept = 0  # jobs that are to be there; 0: as adapting says
        if shutil.which(self._submitting) is None:
            raise OptionError(
                f"there is no {self._submitting} here: run this on a machine that may submit jobs "
                "(a login node), or ask for another kind of cluster"
            )
        super().__init__(name="geopatch", **options)

    # ---- asking for jobs -------------------------------------------------------------------

    def populate(self: Any, workers: int, adapt: tuple[int, int] | None, idle: int) -> None:
        """Submit the first jobs, and begin to look after them.

        Parameters
        ----------
        workers : int
            Slots, where ``adapt`` is None.
        adapt : (int, int) or None
            Fewest and most slots.
        idle : int, seconds
            Before a slot without work is given back, when adapting.

        Raises
        ------
        OptionError
            When the batch system refuses a job.
        """
        fewest = workers if adapt is None else adapt[0]
        each = self._dummy_job.worker_processes
        jobs = -(-fewest // each)
        if adapt is None:
            self._kept = jobs
        for _ in range(jobs):
            self.worker_spec.update(self.new_worker_spec())
        try:
            self.sync(self._correct_state)
        except RuntimeError as error:
            raise OptionError(f"{self._submitting} refuses a job: {_last_words(error)}") from None
        if adapt is not None:
            self.adapt(
                Adaptive=_Demand,
                minimum=adapt[0],
                maximum=adapt[1],
                interval="1s",
                wait_count=idle,
                worker_key=job_of,
            )
        self.loop.add_callback(self._look_after)

    def _new_worker_name(self: Any, worker_number: int) -> str:
        """A name that no job had before: the scheduler may still know the worker of a lost one."""
        del worker_number
        return f"{self._name}-{next(self._numbers)}"

    def _update_worker_status(self, op: str, msg: Any) -> None:
        """As of any cluster: that a worker is gone does not mean that its job is.

        Remembers whose job came, however soon it is gone again.
        """
        if op == "add":
            self._seen |= {_job(worker["name"]) for worker in msg["workers"].values()}
            self._stillborn = 0
        DaskCluster._update_worker_status(self, op, msg)

    # ---- looking after them ----------------------------------------------------------------

    async def _look_after(self: Any) -> None:
        while self.status == Status.running:
            try:
                await self._look()
            except Exception:  # whatever it was, the next look may go better
                _log.warning("could not look after the batch jobs", exc_info=True)
            await asyncio.sleep(LOOK)

    async def _look(self: Any) -> None:
        present = {job_of(worker) for worker in self.scheduler.workers.values()}
        silent = {name: job for name, job in self.workers.items() if name not in present}
        if silent and self.failure is None:
            queued = await self._queued()
            if queued is not None:
                for name, job in silent.items():
                    if job.job_id not in queued and name in self.workers and not self.failure:
                        await self._gone(name, job)
        missing = self._kept - len(self.worker_spec)
        if missing > 0 and self.status == Status.running and self._wanted():
            for _ in range(missing):
                self.worker_spec.update(self.new_worker_spec())
            await self._correct_state()

    def _wanted(self: Any) -> bool:
        """Whether a job that is gone is to be replaced: there is work, or nobody has come yet."""
        return not self._seen or _unfinished(self.scheduler) > 0

    async def _gone(self: Any, name: str, job: Any) -> None:
        """Forget a job that the batch system does not know any more."""
        if job.job_id is None:
            state = "it could not be submitted"
            _log.warning("a batch job could not be submitted")
        else:
            state = await self._ended(job.job_id)
            _log.warning("batch job %s (%s) is gone: %s", job.job_id, name, state)
            self.scheduler.log_event(TOPIC, {"name": name, "job": job.job_id, "state": state})
        if name not in self._seen:
            self._stillborn += 1
        job.status = Status.closed
        self.workers.pop(name, None)
        self.worker_spec.pop(name, None)
        if self._stillborn >= max(STILLBORN, self._kept) and self.failure is None:
            self._fail(job, state)

    def _fail(self: Any, job: Any, state: str) -> None:
        """Submit no more jobs; runs that wait for workers look at the failure, and end."""
        last = "the last one" if job.job_id is None else f"the last one, {job.job_id}"
        self.failure = (
            f"{self._stillborn} batch jobs in a row ended before they were workers; {last}: "
            f"{state}; see what they wrote in {job.log_directory}, mend that, and run the same "
            "command again"
        )
        _log.error("%s", self.failure)
        self._kept = 0
        with contextlib.suppress(AttributeError):  # it does not adapt
            self._adaptive.stop(reason="batch jobs end before they are workers")

    async def _queued(self) -> set[str] | None:
        """Ids of this user's jobs that wait or run; None when the batch system does not answer."""
        answer = await _answer(*self._listing)
        return None if answer is None else set(re.findall(r"^\d+", answer, re.MULTILINE))

    async def _ended(self, job: str) -> str:
        """How a job ended, in the words of the batch system."""
        found = self._state.search(await _answer(*self._asking, job) or "")
        return found[1] if found else "the batch system does not say how"


class SlurmCluster(_Kept, SLURMCluster):
    """Workers that are jobs of Slurm."""

    job_cls = _SlurmJob
    _submitting = "sbatch"
    _listing = ("squeue", "--noheader", "--me", "--format=%A")
    _asking = ("scontrol", "--oneliner", "show", "job")
    _state = re.compile(r"\bJobState=(\w+)")


class PbsCluster(_Kept, PBSCluster):
    """Workers that are jobs of PBS."""

    job_cls = _PbsJob
    _submitting = "qsub"
    _listing = ("qselect", "-u", getpass.getuser())
    _asking = ("qstat", "-x", "-f")
    _state = re.compile(r"\b(Exit_status = -?\d+)")


def job_of(worker: Any) -> str:
    """Name of the job of a worker: ``geopatch-3`` of ``geopatch-3`` and of ``geopatch-3-0``."""
    return _job(worker.name)


def _job(worker: object) -> str:
    return "-".join(str(worker).split("-")[:2])


def _unfinished(scheduler: Any) -> int:
    """Tasks that run, or could if there were workers."""
    running = sum(len(worker.processing) for worker in scheduler.workers.values())
    return running + len(scheduler.queued) + len(scheduler.unrunnable)


def _last_words(error: RuntimeError) -> str:
    """The line of a failed command's answer that says what is wrong."""
    said = str(error).partition("stderr:\n")[2].strip() or str(error)
    return said.splitlines()[-1].strip() if said.strip() else "it does not say why"


async def _answer(*command: str) -> str | None:
    """What a command prints; None if it fails or takes too long."""
    process = None
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        out, _ = await asyncio.wait_for(process.communicate(), TIMEOUT)
        return out.decode(errors="replace") if process.returncode == 0 else None
    if process is not None and process.returncode is None:
        process.kill()
    return None
