"""What was tried with eighty labelled tumour slices before eighty_tumours.py; budgets in steps.

python benchmarks/inner_split.py $PENN_DATA/tumour_t1gd inner/tumour_t1gd --group 3
penn prepare inner/tumour_t1gd prepared/inner_tumour_t1gd
penn study configs/studies/tried_tumours.py --data prepared/inner_tumour_t1gd \\
    --out studies/tried_tumours

As ``tried_spines.py``.
"""

from pathlib import Path
from runpy import run_path

from penn_jax.config import Study

HERE = Path(__file__)
CONFIG = run_path(str(HERE.parents[1] / "tumour_t1gd.py"))["config"]

study = Study(
    name="tried_tumours",
    title="Ways to pre-train for eighty labelled slices, on an inner split",
    arms=run_path(str(HERE.with_name("tried_spines.py")))["tried"](CONFIG, 80, 1200),
)
