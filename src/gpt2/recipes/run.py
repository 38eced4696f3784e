"""One run from its first step to its last: build the parts, join them, train, save, and say how it ended."""

import functools
import itertools
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from gpt2.config.resolve import replanned
from gpt2.config.schema import Settings
from gpt2.console import say, warn
from gpt2.corpus.prepare import Prepared
from gpt2.data.dataset import IGNORED
from gpt2.distributed import World, lost_another, spread
from gpt2.errors import RunError
from gpt2.evaluation.loss import mean_loss
from gpt2.files import read_json, sweep_temporaries
from gpt2.optim.build import build_optimizers
from gpt2.optim.schedule import build_schedule, mean_share
from gpt2.recipes import showing, standing
from gpt2.recipes.pretraining import Pretraining, Task
from gpt2.recipes.snapshot import expected_bytes, fixed_texts, lend, restore_weights, snapshot
from gpt2.recipes.tuning import Tuning
from gpt2.runtime import autocast, derive_seed, is_out_of_memory, keep_freed_memory, pick_device
from gpt2.signals import Signalled
from gpt2.training import checkpoint
from gpt2.training.averaging import Averaging
from gpt2.training.compiled import Compiled
from gpt2.training.display import Display
from gpt2.training.fit import Outcome, Progress, Rhythm, fit
from gpt2.training.guard import Guard
from gpt2.training.interrupt import StopRequest
from gpt2.training.metrics import LinesFile, MetricsFile, Record
from gpt2.training.optimizer_state import restore_optimizers
from gpt2.training.pace import Pace
from gpt2.training.plan import Plan
from gpt2.training.saver import Saver
from gpt2.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Job:
    """A run that is ready to go: its folder is locked, its data prepared, its settings complete."""

    folder: Path
    settings: Settings
    prepared: Prepared
    record: dict[str, Any]
    """run.json: with the sources' bytes it repeats the run."""
    resumed: Path | None
    """The verified checkpoint to go on from."""
    started: float
    world: World
    deadline: float | None = None
    """When the run is to have ended, on the clock of `started`."""


def run(job: Job) -> None:
    """Build the parts, join them, train, and say how it ended."""
    keep_freed_memory()
    settings, prepared, folder, world = job.settings, job.prepared, job.folder, job.world
    train = settings.train
    device = pick_device(train.device, world.local_rank if world.size > 1 else None)
    assert train.steps and train.micro_batch_size and train.eval_every
    if world.is_main:
        sweep_temporaries(folder / "checkpoints")
        sweep_temporaries(folder, older_than=3600)  # `gpt2 plot` writes here without a lock

    task = _task(job)
    model = task.model(job.resumed)
    objective = task.objective(model)
    precision = functools.partial(autocast, train.precision, device)
    translated = functools.partial(Compiled, failed=_not_compiled) if train.compile else None
    strategy = settings.distributed.strategy
    laid_out = spread(objective, model.h, world, strategy, train.precision, device, translated)
    optimizers = build_optimizers([(n, p) for n, p in model.named_parameters() if p.requires_grad], settings.optim)
    stop = StopRequest()
    trainer = Trainer(
        model=model,
        objective=laid_out.in_training,
        once=laid_out.forward,
        optimizers=optimizers,
        schedule=build_schedule(settings.schedule, train.steps),
        loader=task.loader(),
        guard=Guard(train.spike_sigma),
        plan=Plan(
            micro_batch_size=train.micro_batch_size,
            shrunk=train.shrunk,
            grad_clip=train.grad_clip,
            step_seed=lambda step: derive_seed(train.seed, "dropout", step),
            autocast=precision,
            without_sum=laid_out.without_sum,
            independent=laid_out.independent,
            ended=laid_out.ended,
        ),
        started=job.started,
        world=world,
        wish=lambda: stop.received is not None,
        shrunk=lambda step, size: _shrink(job, step, size),
        averaging=Averaging(optimizers, functools.partial(mean_share, settings=settings.schedule)),
    )
    progress = Progress()
    if job.resumed is not None:
        state = read_json(job.resumed / "training_state.json")
        trainer.restore(state["trainer"])
        progress.restore(state["progress"])
        restore_optimizers(model, optimizers, load_file(job.resumed / "training_state.safetensors"))
        trainer.averaging.restored(trainer.step)

    expected = expected_bytes(model, optimizers, settings.schedule.average > 0)
    world.from_main(lambda: standing.require_room(folder, expected))
    if world.is_main:  # a fork has no report either
        task.introduce(model, device, new=job.resumed is None or not (folder / "report.json").exists())
    shared = world.size > 1 and strategy == "fsdp"  # no process holds the whole model

    def validate() -> float:
        size = 2 * trainer.micro_batch_size
        batches = trainer.heeding(_share(task.validation(size), world))
        with trainer.averaging.in_place(trainer.step):
            try:
                return mean_loss(laid_out.forward, batches, precision, world.sum)
            finally:
                laid_out.release()

    lines = task.references(validate if trainer.step == 0 else None)

    curves = showing.Curves(folder, settings, prepared, lines)

    def look(entry: Record) -> None:
        if samples is not None and not shared:
            with trainer.averaging.in_place(trainer.step):
                line = task.sample(model, entry.step)
            if line is not None:
                samples.append(line)
        if world.is_main:
            curves.redraw()

    pace = Pace(job.deadline, train.eval_every) if job.deadline is not None else None

    def replan(step: int, steps: int) -> int | None:
        """Another last step, where the time would be missed; run.json says so before it is taken."""
        until = None if pace is None else world.from_main(functools.partial(pace.steps, step, steps))
        if until is not None:
            changed = replanned(Settings.model_validate(job.record["settings"]), step, until)
            job.record["settings"] = changed.model_dump(mode="json")
            if world.is_main:
                standing.write(folder, "run.json", job.record)
            trainer.schedule = build_schedule(changed.schedule, until)
            display.change_steps(until)
        return until

    def failed(name: str, error: BaseException) -> None:
        warn(
            f"{name} could not be saved. {standing.why(error)} Training goes on"
            f"{'; earlier checkpoints are intact' if checkpoint.list_checkpoints(folder) else ''}."
            f"{' Free some disk space before the next one.' if standing.is_full(error) else ''}"
        )

    saver = Saver(failed)
    told = progress.told(trainer.step)
    metrics = MetricsFile(folder / "metrics.jsonl", keep_to_step=told) if world.is_main else None
    samples = LinesFile(folder / "samples.jsonl", keep_to_step=told) if world.is_main else None
    texts = fixed_texts(model.config, prepared.tokenizer)
    unsaved: str | None = None
    """Why the last checkpoint could not be written, if it could not."""

    def copied(val_loss: float | None) -> Callable[[], object]:
        """What writes the checkpoint of this moment, from copies."""
        write, expected = snapshot(trainer, progress, texts, job.record)

        def write_all(place: checkpoint.NewFolder) -> None:
            write(place)
            for file in (metrics, samples):
                assert file is not None
                file.sync()  # whoever goes on from this checkpoint finds all lines up to its step

        return functools.partial(checkpoint.save, folder, trainer.step, write_all, expected, val_loss, train.keep)

    def save(val_loss: float | None, ends: bool) -> None:
        nonlocal unsaved
        error: Exception | None = None
        if world.is_main:
            saver.settle()  # before the next copy is made: memory may have no room for two
            work = None
            try:
                work = copied(val_loss)
                if ends:
                    work()
                else:
                    saver.submit(standing.name(trainer.step), work)
            except Exception as caught:  # whatever it is, it is said, and no reason to lose the run
                if shared and work is None:
                    raise  # the others wait for this process's shares
                error = caught
        elif shared:
            lend(trainer)
        if ends:  # whoever waits for it must hear of it
            unsaved = world.from_main(
                lambda: None if error is None else standing.why(error, "saving the last checkpoint")
            )
        elif error is not None:
            failed(standing.name(trainer.step), error)

    def roll_back() -> int | None:
        saver.settle()
        found = world.from_main(lambda: _last_good(folder))
        if found is None:
            return None
        state = read_json(Path(found) / "training_state.json")
        restore_weights(model, Path(found))
        restore_optimizers(model, optimizers, load_file(Path(found) / "training_state.safetensors"))
        trainer.pass_over(state["trainer"])
        trainer.averaging.restored(trainer.step)
        progress.restore(state["progress"])
        for file in (metrics, samples):
            if file is not None:
                file.cut_back(progress.told(trainer.step))
        return trainer.step

    rhythm = Rhythm(train.steps, train.eval_every, train.save_every, train.patience)
    outcome: Outcome | Literal["failed"] = "failed"
    standing.write_state(folder, world, "running", trainer.step)
    try:
        val_step, _, val_loss = progress.validations[-1] if progress.validations else (0, 0.0, None)
        with stop, Display(train.steps, trainer.step, val_loss, val_step) as display:
            trackers = [metrics, display, saver] if metrics is not None else []
            paused = pace.paused if pace is not None else (lambda seconds: None)
            outcome = fit(trainer, rhythm, progress, trackers, validate, look, save, roll_back, warn, replan, paused)
            saver.settle()
        if unsaved is not None and outcome != "preempted":
            outcome = "failed"
            world.from_main(functools.partial(standing.refuse, folder, unsaved))
    except (KeyboardInterrupt, Signalled) as signalled:  # the second: it waits for nothing
        outcome = "preempted"
        say(f"Stopped at once. {standing.left(folder)} Go on with: gpt2 train --resume {folder}", style="bold")
        raise SystemExit(signalled.code if isinstance(signalled, Signalled) else 130) from None
    except Exception as error:
        saver.settle()  # what is being written is whole before the process ends
        if is_out_of_memory(error):
            raise _out_of_memory(job, trainer) from None
        if world.size > 1 and lost_another(error):
            raise RunError(
                f"Another process has ended in the middle of step {trainer.step + 1}. {standing.left(folder)}",
                "If it has not said why, it was killed, perhaps because memory ended. Go on with: gpt2 train --resume "
                f"{folder}",
            ) from None
        raise
    finally:
        for file in (metrics, samples):
            if file is not None:
                file.close()
        standing.write_state(
            folder, world, outcome, standing.step_on_disk(folder) if outcome == "preempted" else trainer.step
        )
    if world.is_main:
        curves.complete(stopped=outcome == "preempted")
    if outcome == "preempted":
        if unsaved is None:
            say(f"Stopped at step {trainer.step:,} and saved. Go on with: gpt2 train --resume {folder}", style="bold")
        else:
            warn(f"Stopped at step {trainer.step:,}, but not saved. {unsaved} {standing.left(folder)}")
            say(f"Go on from there, when that is mended: gpt2 train --resume {folder}", style="bold")
        if settings.schedule.name != "constant":
            say(f"Or bring the learning rate down now: gpt2 train --finish {folder} --train.minutes 3")
        raise SystemExit(128 + (stop.received or signal.SIGTERM))
    if world.is_main:
        task.conclude(model, outcome, lines, trainer.step, job.started)
        showing.say_if_late(job.started, job.deadline)


def _task(job: Job) -> Task:
    """What the run learns: answers in conversations, or text."""
    kind = Pretraining if job.settings.tuning is None else Tuning
    return kind(job.folder, job.settings, job.prepared, job.world)


def _shrink(job: Job, step: int, micro_batch_size: int) -> None:
    """Memory ended: smaller micro-batches from here on."""
    if job.world.is_main:
        _keep_micro_batch(job, step, micro_batch_size)
    warn(f"Memory ended. The step is made again, with {micro_batch_size} at once; the batch stays as it is.")


def _keep_micro_batch(job: Job, step: int, size: int) -> None:
    """In run.json, so that a resumed run has the same from the same step on."""
    job.record["settings"]["train"].setdefault("shrunk", []).append((step, size))
    standing.write(job.folder, "run.json", job.record)


def _out_of_memory(job: Job, trainer: Trainer) -> RunError:
    """Memory ended where the step could not be made again. Any process may find that."""
    size = trainer.micro_batch_size
    what = (
        f"Memory ended at step {trainer.step + 1}, with {size} × {job.settings.model.context_length} tokens at once in "
        f"each process (--train.micro-batch-size {size}). {standing.left(job.folder)}"
    )
    if size == 1:
        return RunError(what, "Choose a smaller --model.context-length or --model.preset.")
    half = (size + 1) // 2
    _keep_micro_batch(job, trainer.step, half)
    more = f"gpt2 train --resume {job.folder}"
    return RunError(what, f"Go on with --train.micro-batch-size {half}, which stands in run.json now: {more}")


def _not_compiled(why: str) -> None:
    warn(f"torch.compile has failed: {why} Training goes on without it, and more slowly (--train.compile false).")


def _share(batches: Iterator[tuple[Tensor, Tensor, int]], world: World) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Every W-th batch. All processes get as many, the last perhaps one that does not count: they compute together."""
    while together := list(itertools.islice(batches, world.size)):
        if world.rank < len(together):
            yield together[world.rank]
        else:
            inputs, targets, _ = together[0]
            yield inputs, torch.full_like(targets, IGNORED), 0


def _last_good(folder: Path) -> str | None:
    return str(checkpoint.newest_valid(folder)) if checkpoint.list_checkpoints(folder) else None
