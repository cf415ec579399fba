"""What cannot be learned ends before training, or works with a warning; the message says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hamnet.errors import ConfigError
from hamnet.sample import Sample
from hamnet.store import SampleSet, write_samples
from hamnet.training.run import train


@pytest.fixture
def altered(tiny, fept_set, tmp_path):
    """``altered(change, "train")``: a configuration whose samples of ``train`` went through a function."""

    def config(change, *keys: str, **keywords):
        with SampleSet(fept_set) as samples:
            write_samples(tmp_path / "altered.h5", [change(s) for s in samples])
        names = {"train": "names='fept_soc_sym_*'", "validation": "names='*2x1x1*'", "test": "names='*'"}
        options = [f"data.{key}={{path='{tmp_path}/altered.h5', {names[key]}}}" for key in keys]
        return tiny(*options, *keywords.get("more", ()))

    return config


@pytest.mark.parametrize("key", ["train", "validation", "test"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_label_that_is_not_finite_is_named_with_sample_and_pair(altered, key, bad):
    def spoil(sample: Sample) -> Sample:
        hamiltonian = sample.operator("hamiltonian")
        blocks = [block.clone() for block in hamiltonian.blocks]
        blocks[1][3, 0, 2, 1] = bad
        spoilt = replace(hamiltonian, blocks=tuple(blocks))
        return replace(sample, name=f"{sample.name}_spoilt", hamiltonian=spoilt)

    with SampleSet(altered(spoil, key).data.train[0].path.replace("fept.h5", "altered.h5")) as samples:
        pairs = samples[0].pairs
    first = pairs.groups[1].pairs.start + 3
    where = rf"\(i, j, R\) = \({pairs.row[first]}, {pairs.col[first]}, \[.*\]\)"
    message = rf"hamiltonian of sample 'fept_soc_\w+_spoilt' is not finite in 1 pairs Fe_fept_SOC–Pt_fept_SOC.*{where}"
    with pytest.raises(ConfigError, match=message):
        train(altered(spoil, key))


def without_magnetism(sample: Sample) -> Sample:
    """Zero moments, and H without exchange: a non-magnetic crystal with spin–orbit coupling."""
    hamiltonian = sample.operator("hamiltonian")

    def even(block: torch.Tensor) -> torch.Tensor:
        result = block.clone()
        result[:, 1:].real = 0
        result[:, 0].imag = 0
        return result

    zero = sample.structure.with_moments(np.zeros((len(sample.structure), 3)))
    return replace(sample, structure=zero, hamiltonian=hamiltonian.map(even))


def test_a_set_without_magnetism_trains_with_a_warning(altered):
    said = []
    config = altered(without_magnetism, "train", "validation", more=("training.epochs=1",))
    result = train(config, say=said.append).to_dict()
    assert result["magnetic"] == []
    assert any("warning: mode soc, but no moments and no exchange in H" in line for line in said)
    assert result["errors"]["train"]["mae_exchange_meV"] < 1e-9


def test_exchange_without_moments_is_refused(altered):
    def bare(sample: Sample) -> Sample:
        return replace(sample, structure=sample.structure.with_moments(0.001 * np.array(sample.structure.moments)))

    message = r"exchange parts \(rms up to \d+ meV\), but no magnetic species \(mean moments: Fe_fept_SOC .* μ_B, .*"
    with pytest.raises(ConfigError, match=message + r"\[model\] magnetic"):
        train(altered(bare, "train", "validation"))


def test_one_training_sample_works_with_a_warning(tiny, tmp_path):
    said = []
    options = (f"data.train={{path='{tmp_path}/fept.h5', names='*base'}}", "training.epochs=2")
    result = train(tiny(*options), say=said.append).to_dict()
    assert any("warning: one training sample alone" in line for line in said)
    assert result["errors"]["train"]["mae_meV"] > 0


def test_a_crystal_larger_than_a_batch_is_named_with_its_size(tiny):
    message = r"\[training\] batch_pairs: batch_pairs = 100, but sample 'fept_soc_sym_\w+' has 1\d\d pairs; expected"
    with pytest.raises(ConfigError, match=message):
        train(tiny("training.batch_size=1", "training.batch_pairs=100"))


OUT_OF_MEMORY = """
import resource, sys
from hamnet.errors import HamnetError
from hamnet.training.config import load_config
from hamnet.training import run
fit = run._fit

def limited_fit(*arguments, **keywords):
    # As on a small machine: what is there already, and little more.
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 60_000_000, -1))
    return fit(*arguments, **keywords)

run._fit = limited_fit
try:
    run.train(load_config("train.toml", sys.argv[1:]))
except HamnetError as error:
    print(type(error.__cause__).__name__, error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to limit memory")
def test_a_batch_that_does_not_fit_into_memory_ends_with_a_remedy(tiny, tmp_path):
    tiny()
    large = ["model.channels=64", "model.hidden=64", "model.pair_channels=64", "model.l_max=4", "training.epochs=1"]
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, *large],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "not enough memory for a batch of 2 crystals with 340 pairs" in done.stdout, done.stdout + done.stderr
    assert "by training.batch_pairs (now batch_size = 2)" in done.stdout
