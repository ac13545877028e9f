#!/usr/bin/env bash
# The run of release 2.0's README: `cd release2 && bash example/train.sh`. Further options: `--backbone`, ...
set -euo pipefail
python "$(dirname "$0")/train.py" \
    --output_dir outputs \
    --dataset sst2 \
    --learning_rate 1e-2 \
    --num_train_epochs 3 \
    --save_total_limit 1 \
    --evaluation_strategy epoch \
    --save_strategy epoch \
    --load_best_model_at_end true \
    --metric_for_best_model combined_score \
    "$@"
