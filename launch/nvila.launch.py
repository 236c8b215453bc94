"""Start the node that answers questions about live video of one or several cameras."""

from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

PARAMS_FILE = Path(__file__).parent / "params" / "default.yaml"

ARGUMENTS = (
    ("model", "", "checkpoint: a folder, or the name of an embedded or fetched one; empty: as params_file says"),
    ("backend", "", "runtime of the model, such as onnxruntime; empty: as params_file says"),
    ("precision", "", "of a checkpoint on the backend cpu: auto, fp32, w8 or w4; empty: as params_file says"),
    ("recipe", "", "recipe whose build is loaded in place of the model; empty: as params_file says"),
    ("build_missing_engines", "", "true: build the recipe where it has no build; empty: as params_file says"),
    ("cameras", "", "names of the cameras, such as [front, rear]; empty: as params_file says"),
    (
        "camera_topics",
        "",
        "topic of each camera, such as [/front/image_raw, /rear/image_raw]; empty: as params_file says",
    ),
    ("image", "", "topic of the only camera; empty: image"),
    ("namespace", "", "namespace of the node"),
    ("params_file", str(PARAMS_FILE), "YAML file of the node's parameters"),
    ("use_sim_time", "", "true: take time from /clock, with a simulator or a played bag; empty: as params_file says"),
    ("log_level", "info", "least severe message logged: debug, info, warn, error or fatal"),
)
OVERRIDES = {
    "model": str,
    "backend": str,
    "precision": str,
    "recipe": str,
    "build_missing_engines": bool,
    "cameras": list[str],
    "camera_topics": list[str],
    "use_sim_time": bool,
}


def start_node(context: LaunchContext) -> list[Node]:
    """Build the node once the arguments are known: an empty one leaves the parameter file's value alone."""
    values = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    if values["image"] and (values["cameras"] or values["camera_topics"]):
        raise ValueError("image is the topic of an only, unnamed camera; name the topics of cameras by camera_topics")
    overrides = {
        name: ParameterValue(LaunchConfiguration(name), value_type=kind)
        for name, kind in OVERRIDES.items()
        if values[name]
    }
    node = Node(
        package="nvila_ros",
        executable="nvila_node",
        name="nvila",
        namespace=values["namespace"],
        parameters=[values["params_file"], overrides],
        remappings=[("image", values["image"])] if values["image"] else [],
        ros_arguments=["--log-level", values["log_level"]],
        output="screen",
    )
    return [node]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the node."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text) for name, default, text in ARGUMENTS
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start_node)])
