"""All experiments, in the order of the page."""

from pipeline.experiments.experiment import Experiment
from pipeline.experiments.experts import ExpertsAgainstSharedBottom
from pipeline.experiments.figure_4 import Figure4
from pipeline.experiments.figure_5 import Figure5
from pipeline.experiments.figure_6 import Figure6
from pipeline.experiments.fixed_count import FixedNumberOfExamples
from pipeline.experiments.gates import GatePolarisation
from pipeline.experiments.index_recall import IndexRecall
from pipeline.experiments.position import PositionBiasAgainstTruth
from pipeline.experiments.sampled_softmax import SampledSoftmax
from pipeline.experiments.step_cost import StepCost
from pipeline.experiments.table_1 import Table1
from pipeline.experiments.watch_time import ExpectedWatchTime

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Figure4(),
        Figure5(),
        Figure6(),
        Table1(),
        ExpectedWatchTime(),
        ExpertsAgainstSharedBottom(),
        PositionBiasAgainstTruth(),
        GatePolarisation(),
        FixedNumberOfExamples(),
        SampledSoftmax(),
        IndexRecall(),
        StepCost(),
    )
}
