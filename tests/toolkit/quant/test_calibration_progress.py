"""What calibration says while it runs."""

from torch import Tensor

from p4q_edge.calibration.calibrate import calibrate_encoder
from p4q_edge.models.load import LoadedModel
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.runtime.progress import listening


def test_no_two_parts_of_a_calibration_have_one_name(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    """Two bars of one name look like work that is done twice."""
    ended: list[str] = []

    class Names:
        def update(self, name: str, fraction: float, detail: str = "") -> None: ...

        def finish(self, name: str) -> None:
            ended.append(name)

    with listening(Names()):
        calibrate_encoder(toy_clip, toy_pixels[:4], QuantScheme())
    assert {"calibrate, channels", "calibrate, ranges", "calibrate, linears"} <= set(ended)
    assert len(ended) == len(set(ended))
