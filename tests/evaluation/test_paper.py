"""The paper's figures, as read from the package's data."""

import pytest

from enma_fast.errors import EnmaError
from enma_fast.evaluation.paper import paper_scores, paper_source, paper_uncertainty


def test_combined_equation():
    assert paper_scores("combined", "temporal", "test-in")["ENMA"] == 7.86e-3
    assert paper_scores("combined", "temporal", "test-out")["ENMA"] == 0.102
    assert paper_scores("combined", "initial-value", "test-in")["ENMA"] == 1.56e-2
    assert paper_scores("combined", "initial-value", "test-out")["ENMA"] == 0.33


def test_all_models_of_a_table_are_there():
    temporal = paper_scores("combined", "temporal", "test-in")
    assert temporal["FNO"] == 0.133
    assert temporal["Zebra"] == 1.82e-2
    assert list(temporal) == ["FNO", "BCAT", "AViT", "AR-DiT", "Zebra", "ENMA"]
    assert list(paper_scores("wave", "initial-value", "test-out")) == [
        "In-Context-ViT",
        "CLS-ViT",
        "Zebra",
        "ENMA",
    ]


@pytest.mark.parametrize("dataset", ["advection", "combined", "gray-scott", "wave", "vorticity"])
@pytest.mark.parametrize("task", ["temporal", "initial-value"])
def test_every_dataset_is_harder_outside_the_training_range(dataset, task):
    inside, outside = (paper_scores(dataset, task, split) for split in ("test-in", "test-out"))
    assert inside.keys() == outside.keys()
    assert all(0 < inside[model] < outside[model] for model in inside)


def test_a_data_set_may_have_an_underscore():
    assert paper_scores("gray_scott", "temporal", "test-out") == paper_scores("gray-scott", "temporal", "test-out")


def test_uncertainty():
    figures = paper_uncertainty()
    assert figures["ENMA"] == {"rmsce": 8.68e-2, "crps": 1.70e-3}
    assert figures["AR-DiT"] == {"rmsce": 0.268, "crps": 1.27e-2}
    assert figures["Zebra"] == {"rmsce": 0.219, "crps": 9.0e-3}


def test_a_caller_cannot_change_the_figures():
    paper_uncertainty()["ENMA"]["crps"] = 0.0
    paper_scores("combined", "temporal", "test-in")["ENMA"] = 0.0
    assert paper_uncertainty()["ENMA"]["crps"] == 1.70e-3
    assert paper_scores("combined", "temporal", "test-in")["ENMA"] == 7.86e-3


def test_source_names_the_paper():
    assert "2506.06158" in paper_source()


@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        (("burgers", "temporal", "test-in"), "dataset"),
        (("combined", "generation", "test-in"), "task"),
        (("combined", "temporal", "train"), "split"),
    ],
    ids=["dataset", "task", "split"],
)
def test_unknown_names_list_the_known(arguments, known):
    with pytest.raises(EnmaError, match=known):
        paper_scores(*arguments)
