"""What all tests share."""

import contextlib
import os

import pytest
import torch
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


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def arithmetic(request):
    """That of this processor, or with ``--rounding SEED`` of a drawn one."""
    seed = request.config.getoption("--rounding")
    with contextlib.nullcontext() if seed is None else Rounding(seed):
        yield
