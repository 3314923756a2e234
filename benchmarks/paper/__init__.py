"""What only reproduces the paper: its tables with our models and baselines beside them, run from a checkout.

    python -m benchmarks.paper tables [--check | --out docs | --measure MODEL --data DIR --out benchmarks/paper/scores]

| file            | what                                                                                        |
|-----------------|---------------------------------------------------------------------------------------------|
| `protocols`     | the cases: what a method sees of each trajectory, what it forecasts, and how that is scored |
| `scattered`     | the same of models that see scattered points                                                |
| `features`      | a network, in whose features generated trajectories are compared                            |
| `distribution`  | scores of one set of trajectories against another, by those features                        |
| `score_files`   | what a method reached on an equation: the files in `scores/`                                |
| `score_entries` | checks of what is read from them                                                            |
| `tables`        | cells of the tables, and the page of them                                                   |
| `ten_minutes`   | what the page says of methods that had ten minutes each                                     |

Baselines are in `benchmarks/baselines`. Those without a model, and the paper's own figures, are in
`enma_fast/evaluation`: the library shows them too.
"""
