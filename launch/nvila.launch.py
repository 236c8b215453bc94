"""Start the node that answers questions about a camera's live video."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SHARE = Path(get_package_share_directory("nvila_ros"))

ARGUMENTS = (
    ("model", "", "checkpoint: a folder or the name of an embedded one; empty: as params_file says"),
    ("backend", "", "runtime of the model, such as onnxruntime; empty: as params_file says"),
    ("recipe", "", "recipe whose build is loaded in place of the model; empty: as params_file says"),
    ("build_missing_engines", "", "true: build the recipe where it has no build; empty: as params_file says"),
    ("image", "image", "topic of sensor_msgs/Image to look at, where there is one camera"),
    ("namespace", "", "namespace of the node"),
    ("params_file", str(SHARE / "launch/params/default.yaml"), "YAML file of the node's parameters"),
    ("use_sim_time", "", "true: take time from /clock, with a simulator or a played bag; empty: as params_file says"),
    ("log_level", "info", "least severe message logged: debug, info, warn, error or fatal"),
)


def start_node(context: LaunchContext) -> list[Node]:
    """Build the node once the arguments are known: an empty one leaves the parameter file's value alone."""
    values = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    kinds = {"model": str, "backend": str, "recipe": str, "build_missing_engines": bool, "use_sim_time": bool}
    overrides = {name: ParameterValue(values[name], value_type=kind) for name, kind in kinds.items() if values[name]}
    node = Node(
        package="nvila_ros",
        executable="nvila_node",
        name="nvila",
        namespace=values["namespace"],
        parameters=[values["params_file"], overrides],
        remappings=[("image", values["image"])],
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
