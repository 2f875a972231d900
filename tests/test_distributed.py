"""Beyond one process: DDP and FSDP on two CPU processes, and a run that was killed, give one process's loss curve."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from packaging import version
from safetensors.torch import load_file
from torch.testing import assert_close
from training_setup import curve


SCRIPT = Path(__file__).parent / "distributed_run.py"
# Ragged samples: the two processes' batches hold different numbers of tokens, so a mean of means would show.
HALVES = {"per_device_train_batch_size": 4}
FSDP = {
    "fsdp": "full_shard auto_wrap",
    "fsdp_config": {"transformer_layer_cls_to_wrap": ["Eagle3DecoderLayer"]},
}


def launch(folder, options, *mode, processes: int = 2, code: int = 0) -> list[float]:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [str(SCRIPT), str(folder), json.dumps(options), *mode]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, check=False)
    assert done.returncode == code, done.stderr[-4000:]
    found = [line for line in done.stdout.splitlines() if line.startswith("LOSSES")]
    return json.loads(found[0].removeprefix("LOSSES")) if found else []


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return curve(tmp_path_factory.mktemp("one"))


def test_ddp_follows_one_process(tmp_path, one_process):
    assert launch(tmp_path, HALVES) == pytest.approx(one_process, rel=2e-4)


@pytest.mark.skipif(
    version.parse(transformers.__version__) < version.parse("5.17"),
    reason="older hosts hand accelerate a plug-in that refuses to run without an accelerator",
)
def test_fsdp_follows_one_process_and_saves_a_whole_draft(tmp_path, one_process):
    assert launch(tmp_path, HALVES | FSDP) == pytest.approx(one_process, rel=2e-4)
    saved = load_file(tmp_path / "final" / "model.safetensors")
    assert saved["midlayer.mlp.up_proj.weight"].shape == (48, 32)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_killed_run_resumes_on_the_same_curve(tmp_path):
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2}
    whole = launch(tmp_path / "whole", options, processes=1)
    assert launch(tmp_path / "cut", options, "crash", processes=1, code=-9) == []
    resumed = launch(tmp_path / "cut", options, "resume", processes=1)
    assert resumed == pytest.approx(whole, rel=1e-5)
    weights = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "cut"))
    one, other = weights
    for name in one:
        assert_close(one[name], other[name], atol=1e-6, rtol=1e-5)
