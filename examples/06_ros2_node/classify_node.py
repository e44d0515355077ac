"""A ROS 2 node that names what a camera sees. NOT RUN: written from the documentation of ROS 2 Humble and Jazzy.

ros2 run is not needed: python3 classify_node.py --ros-args -p engine:=out.plan -r image:=/camera/image_raw
"""

import json

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import String

from p4q_edge.runtime import ZeroShotClassifier

CHANNELS = {"rgb8": "rgb", "bgr8": "bgr"}


class ClassifyNode(Node):
    """Listens to `image`, and publishes on `classification` what is seen, as JSON."""

    def __init__(self) -> None:
        super().__init__("p4q_edge")
        engine = self.declare_parameter("engine", "out.plan").value
        self._top_k = self.declare_parameter("top_k", 3).value
        self._classifier = ZeroShotClassifier(engine)
        self._answers = self.create_publisher(String, "classification", 10)
        # Of sensor data the newest counts: a frame that comes while another is worked on is dropped.
        self.create_subscription(Image, "image", self._on_image, qos_profile_sensor_data)

    def _on_image(self, message: Image) -> None:
        colour = CHANNELS.get(message.encoding)
        if colour is None:
            self.get_logger().error(f"expected images as {' or '.join(CHANNELS)}, got {message.encoding}", once=True)
            return
        # A row may be longer than its pixels.
        rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
        pixels = rows[:, : 3 * message.width].reshape(message.height, message.width, 3)
        best = self._classifier.classify(pixels, top_k=self._top_k, color=colour)
        answer = {"label": best.label, "score": best.score, "known": best.known, "topk": best.topk}
        self._answers.publish(String(data=json.dumps(answer)))

    def destroy_node(self) -> None:
        self._classifier.close()
        super().destroy_node()


def main() -> None:
    rclpy.init()
    node = ClassifyNode()
    try:
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
