"""Baselines of the tables: what stands beside the models of this library, on the same data for the same CPU seconds.

| name          | what                                                                                              |
|---------------|---------------------------------------------------------------------------------------------------|
| `persistence` | the last observed frame, for ever                                                                 |
| `climatology` | the mean of the training trajectories at each point and frame                                     |
| `solver`      | the equation's parameters fitted to the observed frames, and solved (`benchmarks/classical.py`)    |
| `fno`         | Fourier neural operator of the package `neuraloperator`, from 3 frames to the next, and so on      |
| `transformer` | deterministic block-causal transformer on patches of the fields, as BCAT                           |
| `latent-flow` | whole latent frames by flow matching given the past, as AR-DiT, on the tokenizer of a shipped model |

    python -m benchmarks.baselines NAME EQUATION --seconds S --seed N --data DIR [--out FOLDER] [--json]

trains for S CPU seconds and measures on test-in and test-out by the scores of the library; a score file goes to
`--out`, `benchmarks/paper/scores` for one that the tables show. A network has as many parameters as the model of
this library for the equation, within 20 %.
"""
