"""`lm-eval`: log-likelihoods over `local-completions`, and answers over `local-chat-completions`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import ROOT, SERVER_PYTHON

CLIENTS = ["lm-eval"]

HERE = Path(__file__).parent
TASKS = HERE / "lm_eval_task"
ATLAS = ROOT / "mlx_roster" / "demo" / "models" / "atlas"


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=TASKS, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def evaluate(model: str, arguments: str, task: str) -> dict[str, Any]:
    said = run(sys.executable, str(HERE / "evaluated.py"), model, arguments, task)
    answer: dict[str, Any] = json.loads(said.splitlines()[-1])
    return answer


def check(given: list[tuple[str, str, Any]]) -> None:
    """That each of context, continuation and response has what the model says in plain mlx-lm."""
    assert len(given) == 32
    command = [SERVER_PYTHON, "-m", "tests.clients.likelihoods", str(ATLAS)]
    pairs = json.dumps([[context, continuation] for context, continuation, _ in given])
    done = subprocess.run(command, cwd=ROOT, input=pairs, capture_output=True, text=True, check=True)
    for (_, _, (said, greedy)), (score, best) in zip(given, json.loads(done.stdout), strict=True):
        assert float(said) == pytest.approx(score, abs=1e-3)
        assert str(greedy) == str(best)


@pytest.mark.parametrize(
    "settings", ["batch_size=1", "batch_size=4,tokenized_requests=False", "batch_size=2,num_concurrent=4"]
)
def test_log_likelihoods_are_the_models_own(url: str, settings: str) -> None:
    arguments = f"model=atlas,base_url={url}/completions,tokenizer={ATLAS},tokenizer_backend=huggingface,{settings}"
    done = evaluate("local-completions", arguments, "capitals_choice")
    assert done["results"]["acc,none"] == 1
    check(
        [
            (context, continuation, response)
            for sample in done["samples"]
            for (context, continuation), (response,) in zip(sample["arguments"], sample["resps"], strict=True)
        ]
    )


def test_the_command(url: str, tmp_path: Path) -> None:
    arguments = f"model=atlas,base_url={url}/completions,tokenizer={ATLAS}"
    command = [str(Path(sys.executable).parent / "lm_eval"), "--model", "local-completions", "--model_args", arguments]
    command += ["--tasks", "capitals_choice", "--include_path", str(TASKS), "--batch_size", "8", "--log_samples"]
    run(*command, "--output_path", str(tmp_path / "out"))
    (results,) = (tmp_path / "out").rglob("results_*.json")
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    assert json.loads(results.read_text())["results"]["capitals_choice"]["acc,none"] == 1
    check(
        [
            (asked["arg_0"], asked["arg_1"], response)
            for line in samples.read_text().splitlines()
            for asked, (response,) in zip(
                json.loads(line)["arguments"].values(), json.loads(line)["resps"], strict=True
            )
        ]
    )


def test_answers_over_chat(url: str) -> None:
    arguments = f"model=atlas,base_url={url}/chat/completions,num_concurrent=4"
    done = evaluate("local-chat-completions", arguments, "capitals_answer")
    assert done["results"]["exact_match,none"] == 1
