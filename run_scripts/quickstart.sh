#!/usr/bin/env bash
# Sets up, trains bart-mini from scratch on the bundled sample (Korean sentences with numbers, dates and prices, to how
# they are read aloud), predicts its test split with beam search, and prints the metrics. Everything lies under
# runs/quickstart/; a second run starts afresh. Set by the environment: SEED, GPUS.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/environment.sh requirements.txt
data=samples/text_normalization
out=runs/quickstart
python train.py -task seq2seq -train_data "$data/train.tsv" -valid_data "$data/valid.tsv" \
    -config_path bart-mini -save_path "$out" -overwrite -gpus "${GPUS:--1}" -seed "${SEED:-1}" \
    -batch_size 8 -max_epoch 5 -learning_rate 1.5e-3 -warmup_steps 500 -lr_scheduler linear -log_every 200
python inference.py -model "$out/best" -test_data "$data/test.tsv" -gpus "${GPUS:--1}" -beam_size 4 \
    -save_output "$out/predictions.txt" -save_label "$out/references.txt" -save_report "$out/report.json" -overwrite
cat <<END

model: $out/best   predictions: $out/predictions.txt   report: $out/report.json
Next, in this folder, with rows of your own (mine.tsv: source TAB target, a row a line):
  source $VENV/bin/activate
  python train.py -train_data mine.tsv -valid_data_proportions 0.05 -init_model google/byt5-small -save_path runs/mine
  python inference.py -model runs/mine -test_data mine.tsv -save_output predictions.txt
END
