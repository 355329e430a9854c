"""The PyTorch twin: the numbers of JAX from a module that needs nothing of this project."""

import subprocess
import sys

import numpy as np
import torch

from penn_jax.export import torch_network
from penn_jax.export.torch import to_torch, torch_state


def test_logits_are_those_of_jax(case):
    network = to_torch(case.variables, *case[:4])
    with torch.inference_mode():
        logits = network(torch.from_numpy(np.moveaxis(case.image, -1, 1).copy())).numpy()
    assert np.abs(case.logits).max() > 0.2
    np.testing.assert_allclose(np.moveaxis(logits, 1, -1), case.logits, rtol=0, atol=1e-4)


def test_every_weight_arrives_under_the_name_of_the_jax_layer(case):
    state = to_torch(case.variables, *case[:4]).state_dict()
    named = torch_state(case.variables)
    # The count of batches is PyTorch's own; JAX keeps none.
    assert {name for name in state if not name.endswith("num_batches_tracked")} == set(named)
    assert all(torch.equal(state[name], value) for name, value in named.items())
    assert torch.equal(
        state["head_0.weight"],
        torch.tensor(np.einsum("...io->io...", case.variables["params"]["head_0"]["kernel"])),
    )


def test_the_twin_runs_where_neither_jax_nor_penn_jax_is():
    program = (
        "import sys, runpy\n"
        "sys.modules.update(dict.fromkeys(('jax', 'flax', 'penn_jax')))\n"
        "Network = runpy.run_path(sys.argv[1])['Network']\n"
        "import torch\n"
        "n = Network(1, 2, 2, stem=2, channels=(4, 8), blocks=1, skip='add', residual=False,\n"
        "            norm='group')\n"
        "print(tuple(n(torch.zeros(1, 1, 8, 16)).shape))\n"
    )
    command = [sys.executable, "-c", program, torch_network.__file__]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.stdout.strip() == "(1, 2, 8, 16)", answer.stderr
