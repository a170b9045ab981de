"""The loader: the same batches from any number of workers, and what goes wrong is said by name."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from dcdist.data.decode import decode_image
from dcdist.data.loader import Batch, BatchLoader, Request
from dcdist.data.source import ImageSource, open_source
from dcdist.data.transforms import View
from dcdist.distributed.seeding import derive_seed, numpy_generator
from dcdist.errors import RunError

TRAINING = View(16, "random_resized", horizontal_flip=True)
WHOLE = View(16, "full")


@pytest.fixture
def source(image_folder) -> ImageSource:
    return open_source(image_folder)


def requests(count: int, *views: View, size: int = 5, num_images: int = 7) -> list[Request]:
    generator = np.random.default_rng(1)
    return [
        Request(
            generator.integers(0, num_images, size), generator.integers(0, 9, size), views, derive_seed("r", number)
        )
        for number in range(count)
    ]


def assert_equal(ours: Batch, theirs: Batch) -> None:
    assert len(ours.views) == len(theirs.views)
    for a, b in zip(ours.views, theirs.views, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(ours.sample_ids, theirs.sample_ids)
    assert torch.equal(ours.targets, theirs.targets)
    assert torch.equal(ours.decoded, theirs.decoded)
    assert (ours.seed, ours.failures) == (theirs.seed, theirs.failures)


def children() -> list[Any]:
    return multiprocessing.active_children()


def load_batches(
    source: ImageSource, requests: Iterable[Request], num_workers: int, prefetch: int = 4, pin_memory: bool = False
) -> Iterator[Batch]:
    """One pass of a loader of its own."""
    loader = BatchLoader([source], num_workers, prefetch, pin_memory)
    try:
        yield from loader.load(source, requests)
    finally:
        loader.close()


def test_content_of_a_batch(source, files):
    plan = requests(3, TRAINING, WHOLE)
    for request, batch in zip(plan, load_batches(source, plan, num_workers=0), strict=True):
        assert [view.shape for view in batch.views] == [(5, 16, 16, 3)] * 2
        assert all(view.dtype == torch.uint8 for view in batch.views)
        assert batch.sample_ids.dtype == batch.targets.dtype == torch.int64
        assert batch.sample_ids.tolist() == request.sample_ids.tolist()
        assert batch.targets.tolist() == request.targets.tolist()
        assert batch.decoded.tolist() == [True] * 5
        assert batch.failures == ()
        assert batch.seed == request.seed
        for number, view in enumerate(request.views):
            draws = view.draw(numpy_generator(request.seed, number), 5)
            for index, sample_id in enumerate(request.sample_ids):
                image = decode_image(list(files.values())[sample_id])
                assert torch.equal(batch.views[number][index], view.apply(image, draws, index))


@pytest.mark.parametrize("form", ["image_folder", "parquet_file"])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_give_the_same_in_the_same_order(request, form, num_workers):
    source = open_source(request.getfixturevalue(form))
    plan = requests(11, TRAINING, WHOLE)
    expected = list(load_batches(source, plan, num_workers=0))
    batches = list(load_batches(source, iter(plan), num_workers, prefetch=2))
    assert len(batches) == 11
    for ours, theirs in zip(batches, expected, strict=True):
        assert_equal(ours, theirs)


def test_a_batch_depends_on_its_request_alone(source):
    plan = requests(4, TRAINING)
    expected = list(load_batches(source, plan, num_workers=0))
    (alone,) = load_batches(source, plan[2:3], num_workers=1)
    assert_equal(alone, expected[2])
    other_seed = plan[2]._replace(seed=1)
    (other,) = load_batches(source, [other_seed], num_workers=0)
    assert not torch.equal(other.views[0], alone.views[0])
    # Two equal views of one request differ in what is drawn for them.
    (twice,) = load_batches(source, [plan[2]._replace(views=(TRAINING, TRAINING))], num_workers=0)
    assert torch.equal(twice.views[0], alone.views[0])
    assert not torch.equal(twice.views[1], twice.views[0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_generators_are_left_alone(source, num_workers):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(load_batches(source, requests(3, TRAINING), num_workers))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_targets_and_no_requests(source, num_workers):
    (batch,) = load_batches(source, [Request(np.array([3, 4]), None, (WHOLE,), 0)], num_workers)
    assert batch.targets is None
    assert batch.sample_ids.tolist() == [3, 4]
    assert batch.to("cpu").targets is None
    assert list(load_batches(source, [], num_workers)) == []


def test_requests_are_drawn_as_far_ahead_as_said(source):
    drawn = []

    def noted() -> Iterator[Request]:
        for request in requests(50, WHOLE):
            drawn.append(request)
            yield request

    batches = load_batches(source, noted(), num_workers=2, prefetch=3)
    next(batches)
    assert len(drawn) == 7  # 2 x 3 in flight, and one for the batch that came back
    batches.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_does_not_decode_is_left_out_and_named_once(image_folder, caplog, num_workers):
    (image_folder / "train" / "dog" / "9.JPEG").write_bytes(b"garbage")
    source = open_source(image_folder)
    assert source.keys[6] == "train/dog/9.JPEG"
    plan = [Request(np.array(ids), None, (TRAINING, WHOLE), 5) for ids in ([0, 6, 2], [6, 6, 1], [3, 4, 5])]
    whole = [Request(np.array(ids), None, (TRAINING, WHOLE), 5) for ids in ([0, 1, 2],)]
    with caplog.at_level(logging.WARNING):
        first, second, third = load_batches(source, plan, num_workers)
        list(load_batches(source, plan, num_workers))
    assert first.decoded.tolist() == [True, False, True]
    assert second.decoded.tolist() == [False, False, True]
    assert third.decoded.all()
    assert [sample_id for sample_id, _ in first.failures] == [6]
    assert "no known image format" in first.failures[0][1]
    assert third.failures == ()
    assert not first.views[0][1].any()
    assert not first.views[1][1].any()
    (undamaged,) = load_batches(source, whole, num_workers=0)
    for index in (0, 2):  # what the others get does not change
        assert torch.equal(first.views[0][index], undamaged.views[0][index])
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert messages[0].startswith("image 'train/dog/9.JPEG' does not decode: no known image format")
    assert list(source.undecodable) == [6]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_that_vanished_ends_the_loading(image_folder, source, num_workers):
    (image_folder / "train" / "dog" / "0.jpg").unlink()
    plan = [Request(np.array([index]), None, (WHOLE,), 0) for index in range(7)]
    batches = load_batches(source, plan, num_workers)
    assert [next(batches).sample_ids.item() for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(RunError, match=r"^image 'train/dog/0.jpg' cannot be read any more"):
        next(batches)
    assert children() == []


def test_abandoned_workers_end(source):
    batches = load_batches(source, requests(1000, TRAINING), num_workers=2)
    next(batches)
    assert len(children()) == 2
    batches.close()
    assert children() == []
    batches = load_batches(source, requests(1000, TRAINING), num_workers=2)
    next(batches)
    del batches
    assert children() == []


def test_workers_leave_signals_to_the_main_process(source):
    plan = requests(60, TRAINING)
    batches = load_batches(source, plan, num_workers=2, prefetch=2)
    loaded = [next(batches)]
    for worker in children():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            os.kill(worker.pid, number)
    loaded += batches
    for ours, theirs in zip(loaded, load_batches(source, plan, num_workers=0), strict=True):
        assert_equal(ours, theirs)


def test_signals_while_workers_start_reach_the_main_process_alone(source):
    received = []
    before = signal.signal(signal.SIGUSR2, lambda *_: received.append(os.getpid()))
    try:

        def plan() -> Iterator[Request]:
            os.kill(os.getpid(), signal.SIGUSR2)  # while the first requests are drawn: signals are blocked
            yield from requests(3, WHOLE)

        assert len(list(load_batches(source, plan(), num_workers=2))) == 3
        assert received == [os.getpid()]
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_an_error_in_the_requests_ends_the_workers(source):
    def failing(count: int) -> Iterator[Request]:
        yield from requests(count, WHOLE)
        raise KeyError("no more")

    for num_workers, count in ((0, 2), (2, 1), (2, 20)):
        batches = load_batches(source, failing(count), num_workers, prefetch=2)
        assert [next(batches).seed for _ in range(count)] == [request.seed for request in requests(count)]
        with pytest.raises(KeyError, match="no more"):
            next(batches)
        assert children() == []


def test_a_killed_worker_is_an_error_that_says_so(source):
    batches = load_batches(source, requests(2000, TRAINING), num_workers=2)
    next(batches)
    killed = children()[0]
    killed.kill()
    killed.join(timeout=10)
    # Not here, whatever the main process is at.
    with pytest.raises(RunError, match="a process that loads images was killed"):
        list(batches)
    assert children() == []


PARENT = """
import sys, time
import numpy as np
from dcdist.data.loader import BatchLoader, Request
from dcdist.data.source import open_source
from dcdist.data.transforms import View

source = open_source(sys.argv[1])
requests = (Request(np.arange(7), None, (View(16),), n) for n in range(10**6))
batches = BatchLoader([source], num_workers=2).load(source, requests)
next(batches)
print("ready", flush=True)
time.sleep(600)
"""


def test_workers_die_with_the_main_process(image_folder):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(image_folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    with parent:
        assert parent.stdout.readline() == "ready\n"
        descendants = psutil.Process(parent.pid).children(recursive=True)
        assert len(descendants) == 4  # two workers, the server that they were forked from, multiprocessing's tracker
        parent.kill()
    # torch's own watchdog looks every five seconds; here each worker waits for the main process's end.
    gone, alive = psutil.wait_procs(descendants, timeout=4)
    assert len(gone) == 4
    assert alive == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_signals_to_the_whole_process_group_are_the_main_process_s(image_folder, number):
    """As a terminal or SLURM sends them: nothing but what handles it may die of it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    script = PARENT.replace(
        "time.sleep(600)",
        "next(sys.stdin); [next(batches) for _ in range(30)]; print('went on', flush=True)",
    )
    script = f"import signal; signal.signal({int(number)}, lambda *_: None)\n" + script
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(image_folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    with parent:
        assert parent.stdout.readline() == "ready\n"
        descendants = psutil.Process(parent.pid).children(recursive=True)
        os.killpg(parent.pid, number)
        time.sleep(0.2)
        assert all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in descendants)
        parent.stdin.write("go on\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "went on\n"
        assert parent.wait(timeout=30) == 0
        assert parent.stderr.read() == ""


def test_an_error_elsewhere_does_not_hang_the_main_process(image_folder):
    """Workers ignore the SIGTERM that multiprocessing sends them when the main process ends with batches unread."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    script = PARENT.replace("time.sleep(600)", "raise RuntimeError('bug')")
    done = subprocess.run(
        [sys.executable, "-c", script, str(image_folder)], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 1
    assert "RuntimeError: bug" in done.stderr
    assert "leaked" not in done.stderr


def test_passes_share_the_processes(source, image_folder):
    """A pass that was not finished is dropped, and the next one is as in a loader of its own."""
    other = open_source(image_folder / "train" / "dog")
    loader = BatchLoader([source, other], num_workers=2)
    plan = requests(9, TRAINING)
    expected = list(load_batches(source, plan, num_workers=0))
    unfinished = loader.load(source, plan)
    assert_equal(next(unfinished), expected[0])
    workers = {worker.pid for worker in children()}
    assert len(workers) == 2
    # Not forks of this process: one of them once waited for ever for a lock of the interpreter, held by a thread here.
    assert all(psutil.Process(worker).ppid() != os.getpid() for worker in workers)
    for ours, theirs in zip(loader.load(source, plan), expected, strict=True):
        assert_equal(ours, theirs)
    few = requests(3, WHOLE, num_images=len(other))
    for ours, theirs in zip(loader.load(other, few), load_batches(other, few, num_workers=0), strict=True):
        assert_equal(ours, theirs)
    assert {worker.pid for worker in children()} == workers
    loader.close()
    assert children() == []


def test_views_of_other_sizes_of_images(tmp_path, encode, make_pixels):
    for number, (height, width) in enumerate([(1, 1), (3, 200), (200, 3), (64, 64)]):
        path = tmp_path / f"{number}.png"
        path.write_bytes(encode(Image.fromarray(make_pixels(height, width)), "PNG"))
    views = (TRAINING, WHOLE, View(16, "center", resize=20))
    (batch,) = load_batches(open_source(tmp_path), [Request(np.arange(4), None, views, 3)], num_workers=1)
    assert batch.decoded.all()
    one_pixel = torch.from_numpy(make_pixels(1, 1))
    for view in batch.views:
        assert torch.equal(view[0], one_pixel.expand(16, 16, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_pinned(source, num_workers):
    plan = requests(3, TRAINING)
    expected = list(load_batches(source, plan, num_workers=0))
    for batch, reference in zip(load_batches(source, plan, num_workers, pin_memory=True), expected, strict=True):
        assert batch.views[0].is_pinned()
        assert batch.targets.is_pinned()
        on_device = batch.to("cuda")
        assert on_device.views[0].is_cuda
        assert_equal(on_device.to("cpu"), reference)
