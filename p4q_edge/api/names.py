"""Names of other rooms that the Python API takes and returns."""

from p4q_edge.recipe import Recipe as Recipe
from p4q_edge.recipe import demo_recipe as demo_recipe
from p4q_edge.recipe import read_recipe as read_recipe
from p4q_edge.runtime.artifacts import Bundle as Bundle
from p4q_edge.runtime.evaluation.report import Report as Report
from p4q_edge.stages import Learned as Learned
from p4q_edge.stages import Prepared as Prepared
