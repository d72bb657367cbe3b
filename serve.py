"""Answer requests over HTTP with trained models: flags -> load -> listen -> predict in batches.

The texts are those of `inference.py` with the same flags. `-h` lists the flags.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import closing, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # not there with PYTHONSAFEPATH

from utils.console import leave_on_signals, run_command, tell

if __name__ == "__main__":
    leave_on_signals()

from checkpoints.model_paths import check_model_paths
from config.checks import check_combinations
from config.flags.serve import ServeConfig
from config.parser import information, parse_flags
from config.user_code import import_user_code
from prediction.checks import check_decoding, check_label_flags
from utils.errors import RunError, Terminated, raise_if_any
from utils.launch import world_size
from utils.libraries import missing_package

USAGE = """\
usage: python serve.py -model CKPT_OR_FOLDER [-port 8000] [flags]

  python serve.py -model runs/mine
  python serve.py -model runs/nsmc -label_decoding score -highlight
  curl -H 'Content-Type: application/json' -d '{"text": "a line"}' \\
      http://127.0.0.1:8000/predict
"""
PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def main(argv: list[str]) -> int:
    if told := information(ServeConfig, USAGE, argv):
        print(told)
        return 0
    config, given, problems = parse_flags(ServeConfig, argv)
    import_user_code(config.serve.user_code)
    check(config, problems)
    raise_if_any(dict.fromkeys(problems))
    from deploy.serving.listening import listen, token_of

    token = token_of(config.serve.token_file)
    with closing(listen(config.serve.host, config.serve.port)) as listening, tempfile.TemporaryDirectory() as temporary:
        from utils.libraries import fix_sums, quiet_libraries

        fix_sums()
        quiet_libraries()
        from deploy.serving.app import make_app
        from deploy.serving.models import load_models
        from deploy.serving.server import serve

        app = make_app(load_models(config, given, Path(temporary)), config.serve, token)
        host = f"[{config.serve.host}]" if ":" in config.serve.host else config.serve.host
        tell(f"listening at http://{host}:{config.serve.port}; Ctrl-C or SIGTERM stops it")
        with suppress(KeyboardInterrupt, Terminated):
            serve(app, listening, config.serve.timeout)
        if app.unanswered:
            raise RunError(f"stopped; {app.unanswered} of the requests that were taken got 503 for an answer")
        tell("stopped; every request that was taken is answered")
    return 0


def check(config: ServeConfig, problems: list[str]) -> None:
    """Every problem of the command line, appended to `problems`."""
    flags = config.serve
    problems += filter(None, (missing_package(package, "serve.py") for package in PACKAGES))
    for name in flags.model:
        check_decoding(config.of_model(name), problems)
        check_label_flags(config.of_model(name), None, problems)
    check_combinations(config, problems)
    check_model_paths(problems, {"-model": flags.model, "-tokenizer": flags.tokenizer})
    if world_size() > 1:
        problems.append("serve.py: one process answers; start it without a launcher")
    if config.device.cpu_processes > 1 or config.device.gpus > 1:
        problems.append("serve.py: one device answers; give -gpus 0 or 1, and no -cpu_processes")
    if config.label.label_prior == "domain":
        problems.append("-label_prior domain: it is the mean of the rows of a file; use contextual")


if __name__ == "__main__":
    run_command(main)
