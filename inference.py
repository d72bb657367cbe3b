"""Predict with a trained encoder-decoder: flags -> load -> predict -> write -> score -> report.

One prediction for each input row, in input order, on one or several GPUs or CPU processes; a command that was stopped
goes on where it was. `-h` lists the flags.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # not there with PYTHONSAFEPATH

from utils.console import leave_on_signals, run_command, tell

if __name__ == "__main__":
    leave_on_signals()

from config.adapters import each_adapter
from config.flags.data import STANDARD_INPUT
from config.flags.inference import InferenceConfig
from config.parser import information, parse_flags
from config.user_code import import_user_code
from prediction.checks import check_inference, check_launched, of_newest_checkpoint
from utils.errors import raise_if_any
from utils.launch import is_first_rank

USAGE = """\
usage: python inference.py -model CKPT_OR_FOLDER -test_data FILE
           [-save_output FILE] [flags]

  python inference.py -model runs/mine/best -test_data test.tsv \\
      -save_output predictions.txt
  python inference.py -model runs/mine/best -test_data test.tsv \\
      -save_output predictions.jsonl -save_report report.json
  python inference.py -model runs/mine -all_checkpoints -test_data test.tsv \\
      -save_report checkpoints.html
  python inference.py -score_only -predictions predictions.txt \\
      -references test.tsv -task klue-sts
  python inference.py run.yaml -test_data test.tsv
  echo "a line" | python inference.py -model runs/mine/best -test_data -
"""


def main(argv: list[str]) -> int:
    if told := information(InferenceConfig, USAGE, argv):
        print(told)
        return 0
    config, given, problems = parse_flags(InferenceConfig, argv)
    import_user_code(config.model.user_code)
    if config.scoring.score_only:
        from prediction.score_files import check_scoring, score_files

        check_scoring(config, given, problems)
        raise_if_any(problems)
        with tempfile.TemporaryDirectory() as temporary:
            score_files(config, Path(temporary))
        return 0
    every = config.model.all_checkpoints and not config.model.adapter
    configs = of_newest_checkpoint(config, problems) if every else each_adapter(config, problems)
    check_launched(config.output.save_output, config.data.test_data, problems)
    for one in configs if is_first_rank() else ():
        check_inference(one, problems)
    raise_if_any(dict.fromkeys(problems))
    from utils.libraries import fix_sums, quiet_libraries

    fix_sums()
    quiet_libraries()
    from prediction.run import run, run_stream
    from prediction.workers.ranks import shared_temporary, work_for_first

    if not is_first_rank():
        work_for_first(config.output.save_output)
        return 0
    work = run_stream if config.data.test_data == (STANDARD_INPUT,) else run
    if every:
        from prediction.selection.checkpoints import run_checkpoints

        work = partial(run_checkpoints, Path(config.model.model[0]))
    for one in configs:
        tell(*(f"-adapter {adapter}" for adapter in one.model.adapter))
        with shared_temporary(one.output.save_output) as shared:
            work(one, given, shared)
    return 0


if __name__ == "__main__":
    run_command(main)
