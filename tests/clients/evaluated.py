"""lm-eval as its own command runs it, but without the index of its thousands of tasks, which takes long to read.

`MODEL ARGUMENTS TASK` are as its command has them. Writes results and samples as JSON, in the folder of the tasks.
"""

from __future__ import annotations

import json
import sys

import lm_eval
from lm_eval.tasks import TaskManager


def main(model: str, arguments: str, task: str) -> None:
    done = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=[task],
        task_manager=TaskManager(include_path=".", include_defaults=False),
        apply_chat_template=model == "local-chat-completions",
    )
    print(json.dumps({"results": done["results"][task], "samples": done["samples"][task]}, default=str))


if __name__ == "__main__":
    main(*sys.argv[1:])
