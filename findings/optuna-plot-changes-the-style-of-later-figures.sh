#!/usr/bin/env bash
# optuna 5.0.0 with matplotlib 3.11.2, Python 3.11.
#
# Drawing one plot of optuna.visualization.matplotlib changes the style of every figure that the program draws later:
# the functions call matplotlib.pyplot.style.use("ggplot"), which is global, and leave it so. A report whose own figures
# come after them has grey panels, other colours and other fonts from there on, one that draws them first has not.
#
# Seen: before, background white and grid off; after one plot_optimization_history, background #E5E5E5 and grid on.
# Expected: the style of other figures stays as it was, as it does when plots are drawn within style.context.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optuna==5.0.0 matplotlib==3.11.2
cd "$folder"
MPLBACKEND=agg venv/bin/python - <<'PYTHON'
import warnings

import matplotlib
import optuna

warnings.simplefilter("ignore")
optuna.logging.set_verbosity(optuna.logging.ERROR)


def style() -> tuple[str, bool]:
    return matplotlib.rcParams["axes.facecolor"], matplotlib.rcParams["axes.grid"]


study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
study.optimize(lambda trial: trial.suggest_float("rate", 0, 1), n_trials=3)
before = style()
optuna.visualization.matplotlib.plot_optimization_history(study)
after = style()
print("before:", before, "after:", after)
assert before == ("white", False)
assert after == ("#E5E5E5", True), "the style of other figures stays as it was now"
PYTHON
