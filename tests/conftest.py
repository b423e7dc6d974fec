"""What all tests share."""

import contextlib
import gc
import os
import random

import numpy as np
import pytest
import torch
from covering import mark_others
from hypothesis import settings
from rounding import Rounding

# The suite's matrices are tiny: a second thread costs more in hand-over than it saves. `kernels.py`
# asks for two all the same.
torch.set_num_threads(int(os.environ.get("DDNKIT_TEST_THREADS", "1")))


def pytest_addoption(parser):
    parser.addoption(
        "--rounding",
        type=int,
        metavar="SEED",
        help="move results within the bounds of rounding, as another processor might",
    )


# What hypothesis draws is the same in every run, so that a change and nothing else makes a test fail;
# `make fuzz` draws anew, and `--hypothesis-seed` draws what that seed gives.
settings.register_profile("same", derandomize=True, database=None, deadline=None)
settings.register_profile("new", derandomize=False, database=None, deadline=None, print_blob=True)


def pytest_configure(config):
    seed = config.getoption("--hypothesis-seed", default=None)
    anew = os.environ.get("DDNKIT_DRAW") == "random" or seed is not None
    settings.load_profile("new" if anew else "same")


# Before pytest asks for the marks by `-m`.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    mark_others(items)
    skipped = {}
    if not torch.cuda.is_available():
        skipped["gpu"] = "needs a CUDA device"
    if config.getoption("--rounding") is not None:
        skipped["programs"] = "no call is short while a dispatch mode moves its results"
    for item in items:
        for name, reason in skipped.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


# What was imported and collected stays to the end: to look for garbage in it, each time that as much
# again as a tenth of it had been made, took a tenth of the time.
def pytest_collection_finish(session):
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(autouse=True)
def arithmetic(request):
    """That of this processor, or with ``--rounding SEED`` of a drawn one."""
    seed = request.config.getoption("--rounding")
    with contextlib.nullcontext() if seed is None else Rounding(seed):
        yield
