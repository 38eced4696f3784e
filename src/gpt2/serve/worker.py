"""The thread that owns the engine. Nobody else touches it: handlers send messages in and get deltas back.

Between two steps the thread reads its messages, so a request that was given up costs one step at most. Places go to
the client that has the fewest, then by arrival; how many answers may run and wait is bounded, for all and for each.
Other work on the model is done here, too, a piece between two steps.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from gpt2.errors import UserError
from gpt2.generation.request import Delta, Request
from gpt2.serve.answer import Answer, News, deliver
from gpt2.serve.engine import Engine
from gpt2.serve.errors import ApiError, describe
from gpt2.serve.limits import Limits
from gpt2.serve.metrics import Metrics
from gpt2.serve.task import Job, Task

T = TypeVar("T")

PACE = 0.02
"""Seconds between two pieces of a text at least: nobody reads faster, and each costs all others 0.03 ms.

Who asks for log-probabilities gets a piece for each token.
"""

log = logging.getLogger("gpt2.serve")

HOPELESS = 5
"""Steps that fail one after the other before the engine is given up, as a GPU must be after some mistakes."""


class Worker:
    """Owns an engine, in a thread of its own.

    Args:
        engine: nobody else may use it while the worker runs.
        limits: how many may wait, and for how long.
        metrics: where is counted what happens.
    """

    def __init__(self, engine: Engine, limits: Limits, metrics: Metrics) -> None:
        self.slots = engine.slots
        self.failed = False
        """Whether the thread has ended by a mistake of ours. It does not come back: the process must be restarted."""
        self._engine = engine
        self._limits = limits
        self._metrics = metrics
        self._share = limits.share(engine.slots)
        self._inbox: queue.SimpleQueue[list[Job] | Task | Answer | ApiError | None] = queue.SimpleQueue()
        self._waiting: list[Job] = []
        self._tasks: deque[Task] = deque()
        self._running: dict[int, Job] = {}
        self._news: defaultdict[asyncio.AbstractEventLoop, list[News]] = defaultdict(list)
        self._lock = threading.Lock()
        self._outstanding: Counter[str] = Counter()  # client → requests that have not ended; under the lock
        self._seconds = 1.0  # how long a request has taken of late; under the lock
        self._stopping = False
        self._failures = 0  # of steps, on end
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Give up everything and wait for the thread's end."""
        self._inbox.put(None)
        self._thread.join()

    @property
    def outstanding(self) -> int:
        """Requests that are running or waiting."""
        with self._lock:
            return self._outstanding.total()

    def submit(self, requests: Sequence[Request], client: str) -> Answer:
        """Hand in requests that belong together; called in the event loop that will read the answer.

        Raises:
            ApiError: 429, too many are waiting, of this client or in all; 400, so many are never possible.
        """
        wanted = len(requests)
        if wanted > self._share:
            raise ApiError(400, f"{wanted} answers at once are too many; {self._share} are possible here.", "n")
        answer = Answer(wanted, client)
        deadline = time.monotonic() + self._limits.answer_seconds
        jobs = [Job(request, answer, index, deadline) for index, request in enumerate(requests)]
        with self._lock:
            self._check_room(client, wanted)
            self._outstanding[client] += wanted
            self._inbox.put(jobs)  # under the lock: so whoever sets `failed` has all that came before it
        return answer

    def run(self, work: Callable[[], T], client: str) -> asyncio.Future[T]:
        """Have the engine's thread run something between two steps, in which nobody's text goes on.

        Args:
            work: may use the model, and must leave it as it was. Its exceptions become an `ApiError` in the future.
            client: who wants it; it counts as one of their answers.

        Raises:
            ApiError: 429, too many are waiting, of this client or in all; 503, the thread has ended.
        """
        task = Task(work, client, time.monotonic() + self._limits.answer_seconds)
        with self._lock:
            self._check_room(client, 1)
            self._outstanding[client] += 1
            self._inbox.put(task)
        return asyncio.wrap_future(task.result)

    def check_room(self, client: str) -> None:
        """Refuse a client early, before its request is read and encoded.

        Raises:
            ApiError: 429, too many are waiting, of this client or in all; 503, the thread has ended.
        """
        with self._lock:
            self._check_room(client, 1)

    def _check_room(self, client: str, wanted: int) -> None:
        if self.failed:
            raise ApiError(503, "The server cannot answer any more.", code="failed")
        total, own = self._outstanding.total(), self._outstanding.get(client, 0)
        if total + wanted > self.slots + self._limits.queue or own + wanted > self._share:
            self._metrics.refused.inc()
            seconds = max(1, min(60, round(self._seconds * total / self.slots)))
            whose = "Too many requests of yours" if own + wanted > self._share else "Too many requests"
            again = {"Retry-After": str(seconds)}
            raise ApiError(429, f"{whose} are waiting. Try again in {seconds} s.", None, "queue_full", again)

    def cancel(self, answer: Answer) -> None:
        """Give up what has not been answered yet; nothing happens if all has."""
        if answer.open:
            self._inbox.put(answer)

    def abort(self, error: ApiError) -> None:
        """End all that is running and waiting with an error."""
        self._inbox.put(error)

    def _live(self) -> None:
        try:
            while not self._stopping:
                self._read_messages(wait=not self._running and not self._waiting and not self._tasks)
                self._give_up_late()
                self._admit()
                if self._running:
                    self._step()
                if self._tasks and not self._stopping:
                    self._do(self._tasks.popleft())
                self._tell()
            self._end_all(ApiError(503, "The server is shutting down.", code="shutting_down"))
        except Exception as error:  # noqa: BLE001 - whatever it is, clients must not wait for ever
            with self._lock:
                self.failed = True
            log.critical("the engine's thread ended: %s", describe(error))
            self._read_messages(wait=False)
            self._end_all(ApiError(500, "The server failed.", code="failed"))
        self._tell()

    def _read_messages(self, wait: bool) -> None:
        """All messages that are there; if asked to, the first is waited for."""
        while True:
            try:
                message = self._inbox.get(block=wait)
            except queue.Empty:
                return
            wait = False
            if message is None:
                self._stopping = True
            elif isinstance(message, ApiError):
                self._end_all(message)
            elif isinstance(message, Answer):
                self._drop(message)
            elif isinstance(message, Task):
                self._tasks.append(message)
            else:
                self._waiting.extend(message)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.slots:
            # Of equals the first: so a client with a hundred requests does not stand before one with a single one.
            running = Counter(job.answer.client for job in self._running.values())
            job = min(self._waiting, key=lambda job: running[job.answer.client])
            try:
                ticket = self._engine.admit(job.request)
            except UserError as error:
                self._end(job, ApiError(400, error.what, code="invalid_value"))
            except Exception as error:  # noqa: BLE001 - one request fails, the server lives
                log.error("a request could not be taken: %s", describe(error))
                self._end(job, ApiError(500, "This request could not be answered."))
            else:
                if ticket is None and not self._running:
                    self._end(job, ApiError(503, "There is not enough memory for this request.", code="no_memory"))
                elif ticket is None:
                    return
                else:
                    self._waiting.remove(job)
                    job.ticket = ticket
                    self._running[ticket] = job
                    self._count()

    def _step(self) -> None:
        try:
            news = self._engine.step()
        except Exception as error:
            log.error("a step of the engine failed: %s", describe(error))
            for job in list(self._running.values()):
                self._end(job, ApiError(500, "The model could not write any further.", code="engine_failed"))
            self._failures += 1
            if self._failures == HOPELESS:
                raise
            return
        self._failures = 0
        written = 0
        for ticket, delta in news:
            job = self._running[ticket]
            if isinstance(delta, UserError):
                log.error("an answer failed: %s", describe(delta))
                self._end(job, ApiError(500, "The model could not write any further.", code="engine_failed"))
                continue
            written += len(delta.tokens)
            job.held.append(delta)
            if delta.finish is not None or job.request.logprobs is not None:
                self._post_held(job)
            if delta.finish is not None:
                del self._running[ticket]
                self._ended(job.answer.client, job.arrived)
        late = time.monotonic() - PACE
        for job in self._running.values():
            if job.told <= late:
                self._post_held(job)
        self._metrics.written.inc(written)

    def _do(self, task: Task) -> None:
        """Run a task, unless it was given up."""
        if task.result.set_running_or_notify_cancel():
            try:
                task.result.set_result(task.work())
            except Exception as error:  # noqa: BLE001 - one request fails, the server lives
                log.error("work on the model failed: %s", describe(error))
                task.result.set_exception(ApiError(500, "This request could not be answered."))
        self._ended(task.client, task.arrived)

    def _give_up_late(self) -> None:
        now = time.monotonic()
        for job in [*self._waiting, *self._running.values()]:
            if job.deadline < now:
                seconds = self._limits.answer_seconds
                self._end(job, ApiError(503, f"The answer took longer than {seconds:g} s.", code="timeout"))
        while self._tasks and self._tasks[0].deadline < now:
            self._refuse(self._tasks.popleft(), ApiError(503, "The answer took too long.", code="timeout"))

    def _drop(self, answer: Answer) -> None:
        for job in [*self._waiting, *self._running.values()]:
            if job.answer is answer:
                self._metrics.cancelled.inc(not answer.failed)  # else it was not its client who gave it up
                self._forget(job)

    def _end_all(self, error: ApiError) -> None:
        for job in [*self._waiting, *self._running.values()]:
            self._end(job, error)
        while self._tasks:
            self._refuse(self._tasks.popleft(), error)

    def _refuse(self, task: Task, error: ApiError) -> None:
        task.fail(error)
        self._ended(task.client, task.arrived)

    def _end(self, job: Job, error: ApiError) -> None:
        self._post_held(job)
        self._post(job, error)
        self._forget(job)

    def _forget(self, job: Job) -> None:
        """Free the place of a job that has not come to its end."""
        if job.ticket is None:
            self._waiting.remove(job)
        else:
            del self._running[job.ticket]
            try:
                self._engine.cancel(job.ticket)
            except Exception as error:  # noqa: BLE001 - it is forgotten anyhow
                log.error("a request could not be cancelled: %s", describe(error))
        self._ended(job.answer.client, job.arrived)

    def _ended(self, client: str, arrived: float) -> None:
        with self._lock:
            self._outstanding[client] -= 1
            if not self._outstanding[client]:
                del self._outstanding[client]
            self._seconds += 0.1 * (time.monotonic() - arrived - self._seconds)
        self._count()

    def _count(self) -> None:
        self._metrics.running.set(len(self._running))
        self._metrics.waiting.set(len(self._waiting))

    def _post_held(self, job: Job) -> None:
        if job.held:
            self._post(job, job.take())

    def _post(self, job: Job, event: Delta | ApiError) -> None:
        self._news[job.answer.loop].append((job.answer, job.index, event))

    def _tell(self) -> None:
        """Hand the news of this step to the event loop, all in one call."""
        for loop, news in self._news.items():
            try:
                loop.call_soon_threadsafe(deliver, news)
            except RuntimeError:  # the loop was closed; nobody listens
                log.debug("an event loop has ended before its answers")
        self._news.clear()
