#!/usr/bin/env bash
# optuna 5.0.0 with matplotlib 3.11.2, Python 3.11.
#
# optuna.visualization.matplotlib.plot_slice colours each dot by the number of its trial and draws one colour bar for
# all panels. Each panel has a scale of its own, from the first to the last trial that had its parameter, and the bar
# is that of the last panel. With a conditional parameter, which only some trials have, the same colour means other
# trials in each panel, and the bar is wrong for all but one: here trial 9 has the colour that the bar calls trial 3.
#
# Seen: scales of the panels (0.0, 9.0) and (2.0, 3.0); the bar is from 2 to 3.
# Expected: one scale for all panels, from 0 to 9, as the one bar says.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optuna==5.0.0 matplotlib==3.11.2
cd "$folder"
MPLBACKEND=agg venv/bin/python - <<'PYTHON'
import warnings

import optuna

warnings.simplefilter("ignore")
optuna.logging.set_verbosity(optuna.logging.ERROR)


def loss(trial: optuna.Trial) -> float:
    rate = trial.suggest_float("a_rate", 0, 1)
    return rate + (trial.suggest_float("b_width", 0, 1) if trial.number in (2, 3) else 0)


study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
study.optimize(loss, n_trials=10)
panels = optuna.visualization.matplotlib.plot_slice(study, params=["a_rate", "b_width"])
scales = [tuple(map(float, panel.collections[0].get_clim())) for panel in panels]
figure = panels[0].figure
bars = [axis for axis in figure.axes if axis not in list(panels)]
shown = tuple(map(float, bars[0].get_ylim()))
print("scales of the panels:", scales, "of the bar:", shown)
assert scales == [(0.0, 9.0), (2.0, 3.0)] and shown == (2.0, 3.0), "the panels share a scale now"
PYTHON
