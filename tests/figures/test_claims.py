"""The verdicts in words."""

import pandas as pd

from rare_token_neurons.figures import claims as claim_figures
from rare_token_neurons.statistics.claims import NOT, REPRODUCED, UNTESTED


def test_the_summary_counts_a_claim_once_and_names_what_was_not_run():
    verdicts = {"C1": REPRODUCED, "C2": UNTESTED, "C3": NOT, "C5": REPRODUCED}
    table = pd.DataFrame([{"model": model, "id": name, "claim_verdict": found} for model in ("owner/one", "two")
                          for name, found in verdicts.items() for _ in range(1 + (name == "C3"))])
    first, second, _, last = claim_figures.summary(table, []).splitlines()
    assert first == f"- **one**: {REPRODUCED}: C1, C5; {NOT}: C3; {UNTESTED}: C2." and second.startswith("- **two**: ")
    assert last.startswith("These models are small")
    last = claim_figures.summary(table, ["owner/three", "four"]).splitlines()[-1]
    assert last.startswith("The paper's own models (three, four) were not run here: their column is empty. These models are")
