"""Two real processes that exchange gradients over gloo, against one."""

import multiprocessing
import os

import pytest
import torch
import torch.distributed as dist
from tiny_training import TASK, Log, tiny_config, tiny_model, tiny_rows, tiny_state, tiny_work

from gpt2cls.errors import NonFiniteLoss
from gpt2cls.training.compute import Compute
from gpt2cls.training.evaluating import logits_of_rows
from gpt2cls.training.loop import fit
from gpt2cls.training.memory import TokenBudget
from gpt2cls.training.ranks import Ranks


def as_rank(body, rank, world, folder, results, arguments):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    try:
        results.put((rank, body(Ranks(rank, world), *arguments)))
    except Exception as error:
        results.put((rank, error))
    finally:
        dist.destroy_process_group()


def on_ranks(world, folder, body, *arguments):
    """What `body(ranks, *arguments)` returned or raised, on each of `world` processes."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=as_rank, args=(body, rank, world, folder, results, arguments))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    try:
        answers = dict(results.get(timeout=120) for _ in processes)
    finally:
        for process in processes:
            process.join(20)
            process.kill()
    return [answers[rank] for rank in range(world)]


def trained(ranks, num_rows, settings):
    config, log = tiny_config(**settings), Log()
    state = tiny_state(config)
    fit(state, tiny_work(config, log, rows=tiny_rows(num_rows), ranks=ranks), config, ranks)
    weights = torch.cat([p.detach().reshape(-1) for p in state.model.parameters()])
    return log.losses(), weights.numpy().tobytes()


SETTINGS = {
    "rows divide unevenly": {"batch_size": 7, "epochs": 10},
    "class weights and label smoothing": {
        "batch_size": 5,
        "epochs": 8,
        "class_weights": "balanced",
        "label_smoothing": 0.1,
    },
}


@pytest.mark.system
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_two_ranks_learn_what_one_learns_and_end_alike(tmp_path, settings):
    # 31 rows: the last batch of an epoch has 3 rows, or a single one, which leaves a rank without.
    alone, _ = trained(Ranks(), 31, settings)
    (losses, weights), (other_losses, other_weights) = on_ranks(2, tmp_path, trained, 31, settings)
    assert weights == other_weights
    assert losses == other_losses
    assert losses[0] == pytest.approx(alone[0], abs=1e-5)
    assert losses[49] == pytest.approx(alone[49], abs=1e-3)


def stop_when_asked_on_rank_one(ranks):
    config, log = tiny_config(), Log()
    state = tiny_state(config)
    work = tiny_work(config, log, ranks=ranks, should_stop=lambda: ranks.rank == 1)
    return fit(state, work, config, ranks), log.saved


def diverge_on_rank_one(ranks):
    config, log = tiny_config(), Log()
    state = tiny_state(config)
    if ranks.rank == 1:
        with torch.no_grad():
            state.model.head.linear.bias[0] = float("nan")
    fit(state, tiny_work(config, log, ranks=ranks), config, ranks)


def overflow_on_rank_one(ranks):
    config, log = tiny_config(precision="fp16", max_steps=2, batch_size=4), Log()
    state = tiny_state(config)
    if ranks.rank == 1:
        with torch.no_grad():
            state.model.head.linear.bias[0] = float("inf")
    fit(state, tiny_work(config, log, rows=tiny_rows(8), ranks=ranks), config, ranks)
    return log.of("skipped"), state.loss_scale.scale, len(state.optimizer.state)


def all_logits(ranks, num_rows):
    rows = tiny_rows(num_rows)
    compute = Compute(ranks, "fp32", TokenBudget(64))
    logits_NC = logits_of_rows(tiny_model(), rows, rows.data.lengths, TASK, compute)
    return logits_NC.numpy()


def several(ranks):
    """Each in turn, so that the processes start once."""
    stopped = stop_when_asked_on_rank_one(ranks)
    try:
        diverged = diverge_on_rank_one(ranks)
    except NonFiniteLoss as error:
        diverged = error.step
    return stopped, diverged, overflow_on_rank_one(ranks), all_logits(ranks, 31)


@pytest.mark.system
def test_ranks_agree_on_stops_overflows_non_finite_losses_and_evaluations(tmp_path):
    answers = on_ranks(2, tmp_path, several)
    for stopped, diverged, overflowed, logits_NC in answers:
        assert stopped == ("stopped", [1])
        assert diverged == 1
        assert overflowed == ([1, 2], 2.0**14, 0)
        assert logits_NC.tobytes() == answers[0][3].tobytes()
        torch.testing.assert_close(logits_NC, all_logits(Ranks(), 31), atol=1e-5, rtol=1e-5)
